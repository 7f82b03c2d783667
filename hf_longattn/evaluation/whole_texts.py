"""Pipelines that read whole texts of any length, and never cut a text in silence.

A text is read in one pass if the model can. A longer text is read in windows of tokens that overlap, and the results
of the windows are merged in a way that suits the task. Each token belongs to one window (:func:`.token_windows`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput
from transformers.pipelines import Pipeline, ZeroShotClassificationArgumentHandler

from ..data.tokenization import longest_input
from ..errors import InputError, OptionError, listed
from ..modeling.inference import evaluating, without_cache
from .windows import Windows, text_windows, with_windows

BATCH = 8
"""Windows in a forward pass."""
GLINER = "GLiNER"
Settings = Mapping[str, Any]
"""Arguments of a pipeline's ``preprocess`` (named ``before`` here), or of its ``postprocess`` (``after``)."""
MERGES: dict[str, Callable[[Tensor], Tensor]] = {"mean": lambda odds: odds.mean(0), "max": lambda odds: odds.amax(0)}
"""Value of ``merge`` -> function that makes one row ``(labels,)`` of the log odds ``(windows, labels)`` of a text."""


def read_whole(reader: Any, *, merge: str | None = None, stride: int | None = None) -> WholeReader:
    """Let a pipeline read texts of any length: in one pass if the model can, or else in windows.

        tagger = hf_longattn.read_whole(pipeline("token-classification", "dslim/bert-base-NER"))
        entities = tagger(contract, aggregation_strategy="simple")
        entities.windows  # start and end of each window, in characters

    The result has the same form as the reader's, with an additional attribute ``windows``. docs/how-to/stock.md says
    how the results of the windows are merged for each kind of reader.

    Args:
        reader: a pipeline of transformers with a fast tokenizer, a CrossEncoder of sentence-transformers, a
            :class:`~hf_longattn.evaluation.qa_reader.QAReader`, or a GLiNER.
        merge: "mean" or "max", for tasks that score a text as a whole. If it is not given, a text that does not fit
            into one window is refused.
        stride: tokens (for GLiNER: words) that two windows share. At most a quarter of a window, and half of the room
            that a question or label leaves. Default: 128, or a quarter of a shorter window.

    Raises:
        OptionError: the reader is of another kind, ``merge`` or ``stride`` does not suit it, or its tokenizer is slow.
            At a call: a setting of the pipeline does not work with windows.
        InputError: at a call: an input is not a text, a long text needs ``merge``, or a question leaves no room.
    """
    return WholeReader(reader, merge, stride)


class WholeReader:
    """The function that :func:`read_whole` returns. It takes the reader's arguments: a text, or a list of texts.

    Attributes:
        task: key of :data:`TASKS`.
        read: the function that reads one text.
        limit: maximum tokens (for GLiNER: words) of a window.
    """

    def __init__(self, reader: Any, merge: str | None, stride: int | None) -> None:
        # Task
        name = reader.task if isinstance(reader, Pipeline) else type(reader).__name__
        task = GLINER if hasattr(reader, "predict_entities") else name
        if task not in TASKS:
            raise OptionError(
                f"read_whole takes pipelines and readers for {listed(TASKS, len(TASKS))}, not {task!r}; wrap a "
                "model in pipeline(task, model, tokenizer=tokenizer)."
            )
        if merge is not None and merge not in MERGES:
            raise OptionError(f"merge is {merge!r}; give {listed([repr(name) for name in MERGES])}.")
        self.reader, self.task, self.merge, self.read = reader, task, merge, TASKS[task]
        if merge is not None and self.read not in MERGING:
            raise OptionError(f"{task} has no scores of whole texts to merge; leave merge={merge!r} out.")

        # Tokenizer, model and limit
        if task == GLINER:
            self.limit = int(reader.config.max_len)
        else:
            self.tokenizer = copy(reader.tokenizer)
            self.tokenizer.truncation_side = "right"  # windows are numbered from the beginning of the text
            self.model = reader[0].model if task == "CrossEncoder" else reader.model
            self.limit = reader.length if task == "QAReader" else longest_input(self.model, self.tokenizer)
            if task == "CrossEncoder":
                self.limit = min(self.limit, self.tokenizer.model_max_length or self.limit)
                if len(reader) > 1 or reader.default_prompt_name:
                    raise OptionError(
                        "A CrossEncoder must be of one module without a prompt; set default_prompt_name to None."
                    )
            if not self.tokenizer.is_fast:
                raise OptionError(
                    f"{type(self.tokenizer).__name__} does not tell where in a text its tokens are; load the fast "
                    "tokenizer."
                )
            if self.tokenizer.pad_token is None:
                raise OptionError(
                    "The tokenizer has no padding token; set tokenizer.pad_token and model.config.pad_token_id."
                )

        # Stride
        most = self.limit // 4
        self.stride = min(128, most) if stride is None else stride
        if type(self.stride) is not int or not 0 <= self.stride <= most:
            raise OptionError(
                f"stride is {stride!r}, but must be a number of tokens from 0 to {most}, a quarter of a window."
            )

    def __call__(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        """The result for one text, or the list of results for several texts, in the form of the reader's results."""
        # One input, or several?
        is_one = texts is None or isinstance(texts, str | bytes | Mapping)
        if self.read is score_pair and isinstance(texts, list | tuple | np.ndarray):
            is_one = len(texts) == 2 and isinstance(texts[0], str)
        inputs = [texts] if is_one else list(texts)
        for text in inputs:
            if not all(isinstance(part, str) for part in parts(self.read, text)):
                raise InputError(
                    f"{self.task} reads {INPUTS.get(self.read, 'a text')}, or a list of such, not {text!r}."
                )

        if not isinstance(self.reader, Pipeline):
            results = [self.read(self, text, *args, **kwargs) for text in inputs]
            return results[0] if is_one else results
        if not inputs:
            return []
        # A copy of the pipeline sorts the arguments and puts results into lists, but reads each text in windows. The
        # steps are a DataLoader's two settings, and the arguments of preprocess, forward and postprocess.
        caller: Any = copy(self.reader)
        caller.run_single = lambda text, before, _, after: self.read(self, text, before, after)
        caller.get_iterator = lambda texts, *steps: (self.read(self, text, steps[2], steps[4]) for text in texts)
        result = caller(texts if is_one else inputs, *args, **kwargs)
        if is_one and type(result) is list:
            result = with_windows(result, result[0].windows)
        return result

    def windows_of(self, text: str, beside: str | None = None, **settings: Any) -> Windows:
        """The windows of a text, each with the text ``beside``. ``settings``: arguments of :func:`.text_windows`."""
        return text_windows(self.tokenizer, text, beside, limit=self.limit, stride=self.stride, **settings)

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The model's first output for all windows, ``(windows, …)`` in float32 on the CPU."""
        settings = without_cache(self.model)
        outputs = []
        with evaluating(self.model), torch.inference_mode():
            for start in range(0, len(inputs["input_ids"]), BATCH):
                batch = {name: x[start : start + BATCH].to(self.model.device) for name, x in inputs.items()}
                outputs.append(self.model(**batch, **settings)[0].float().cpu())
        return torch.cat(outputs)

    def merged(self, odds: Tensor) -> Tensor:
        """The log odds ``(labels,)`` of a text, merged from those of its windows, ``(windows, labels)``.

        Raises:
            InputError: there are several windows, but ``merge`` is not given.
        """
        if len(odds) == 1:
            return odds[0]
        if self.merge is None:
            raise InputError(
                f"The text takes {len(odds)} windows of {self.limit:,} tokens; say how to merge their scores, with "
                "read_whole(..., merge='mean') or merge='max'."
            )
        return MERGES[self.merge](odds)


def parts(read: Callable[..., Any], text: Any) -> Any:
    """The values in an input that must be texts. ``[None]`` if the input is of a form that the reader does not take.

    ``read`` is the function that reads the input, a value of :data:`TASKS`.
    """
    if read is score_pair:
        return text if isinstance(text, list | tuple | np.ndarray) and len(text) == 2 else [None]
    if read is answer_question:
        return [text.get("question"), text.get("context")] if isinstance(text, Mapping) else [None]
    if read is classify_text and isinstance(text, Mapping):
        return [text.get("text"), text.get("text_pair") or ""]
    return [text]


def log_odds(scores: Tensor) -> Tensor:
    """The log odds of each label against all others, from the logits of a softmax, both ``(windows, labels)``."""
    others = scores.unsqueeze(1).expand(-1, scores.shape[1], -1).clone()
    others.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return scores - others.logsumexp(-1)


def classify_text(whole: WholeReader, text: Any, before: Settings, after: Settings) -> Any:
    """Text classification. The log odds of the windows are merged.

    ``text`` is a text, or a dictionary with ``text`` and ``text_pair``.
    """
    pair = text if isinstance(text, Mapping) else {"text": text}
    windows = whole.windows_of(pair["text"], pair.get("text_pair") or None, called="text_pair")
    logits, config = whole.run(windows.inputs), whole.model.config
    if len(logits) > 1:
        function = getattr(after.get("function_to_apply"), "value", None)
        one_label = config.num_labels > 1 and config.problem_type in (None, "single_label_classification")
        if function == "softmax" or (function is None and one_label):
            # The pipeline would apply a softmax. A sigmoid of log odds gives the same probabilities.
            logits = log_odds(logits)
            after = {**after, "function_to_apply": "sigmoid"}
    return with_windows(whole.reader.postprocess({"logits": whole.merged(logits)[None]}, **after), windows.spans)


def classify_by_hypotheses(whole: WholeReader, text: str, before: Settings, after: Settings) -> Any:
    """Zero-shot classification: each label is a hypothesis, which each window entails or contradicts.

    The log odds of the windows are merged.
    """
    names, entailment = before.get("candidate_labels", []), whole.reader.entailment_id
    contradiction = -1 if entailment == 0 else 0
    template = before.get("hypothesis_template", "This example is {}.")
    # This handler refuses missing labels, and a template without a place for the label.
    pairs, _ = ZeroShotClassificationArgumentHandler()(text, names, template)

    # Logits. Shorter hypotheses leave tokens free, so that the windows are the same for all labels.
    lengths = [len(whole.tokenizer(hypothesis)["input_ids"]) for _, hypothesis in pairs]
    scores = []
    for (_, hypothesis), length in zip(pairs, lengths, strict=True):
        windows = whole.windows_of(text, hypothesis, called="longest label", spared=max(lengths) - length)
        scores.append(whole.run(windows.inputs)[:, [contradiction, entailment]])
    logits = torch.stack(scores, 1)  # (windows, labels, 2)

    # Log odds of a label against its contradiction, or against the other labels
    if after.get("multi_label") or len(names) == 1:
        odds = logits[..., 1] - logits[..., 0]
    else:
        odds = log_odds(logits[..., 1])
    probabilities = whole.merged(odds).sigmoid()
    order = probabilities.argsort(descending=True).tolist()
    labels = [names[number] for number in order]
    result = {"sequence": text, "labels": labels, "scores": probabilities[order].tolist()}
    return with_windows(result, windows.spans)


def tag_tokens(whole: WholeReader, text: str, before: Settings, after: Settings) -> Any:
    """Token classification. The tags of a token are from the window to which it belongs.

    If tags are aggregated to entities, the pipeline merges the entities of all windows.
    """
    if before.get("is_split_into_words") or "offset_mapping" in before:
        raise OptionError(
            "read_whole reads texts; join the words with spaces, and leave is_split_into_words and offset_mapping out."
        )
    if "tokenizer_params" in before:
        raise OptionError("The pipeline sets a stride; remove it there, and pass it to read_whole(..., stride=128).")
    windows = whole.windows_of(text)
    by_token = getattr(after.get("aggregation_strategy"), "value", "none") == "none"
    read = windows.in_text & windows.owned if by_token else windows.in_text
    columns = {"special_tokens_mask": ~read, "offset_mapping": windows.offsets, **windows.inputs}
    columns["logits"] = whole.run(windows.inputs)
    outputs = [  # for each window, what the pipeline's forward pass returns
        {"sentence": text, **{name: rows[window, None] for name, rows in columns.items()}}
        for window in range(len(windows.first))
    ]
    if not by_token:
        return with_windows(whole.reader.postprocess(outputs, **after), windows.spans)
    entities = list[Any]()
    for output, first in zip(outputs, windows.first, strict=True):
        for entity in whole.reader.postprocess([output], **after):
            entities.append({**entity, "index": entity["index"] + first})
    return with_windows(entities, windows.spans)


def extract_features(whole: WholeReader, text: str, before: Settings, after: Settings) -> Any:
    """The states of all tokens. The state of a token is from the window to which it belongs."""
    windows = whole.windows_of(text)
    states = whole.run(windows.inputs)[windows.owned]
    result = whole.reader.postprocess(BaseModelOutput(last_hidden_state=states[None]), **after)
    if not isinstance(result, Tensor):
        result = with_windows(result, windows.spans)
    return result


def fill_masks(whole: WholeReader, text: str, before: Settings, after: Settings) -> Any:
    """The most likely tokens at each mask, from the window to which the mask belongs."""
    windows, mask_id = whole.windows_of(text), whole.tokenizer.mask_token_id
    masked = (windows.inputs["input_ids"] == mask_id) & windows.owned
    if not masked.any():
        raise InputError(f"The text has no {whole.tokenizer.mask_token}; write it where a word is to be predicted.")

    # Read the windows with masks, and let the pipeline find the most likely tokens.
    has_mask = masked.any(1)
    inputs = {name: x[has_mask] for name, x in windows.inputs.items()}
    logits = whole.run(inputs)[masked[has_mask]]
    outputs = {"input_ids": windows.inputs["input_ids"][masked][None], "logits": logits[None]}
    result = whole.reader.postprocess(outputs, **after)

    # Put the whole text with the predicted token into the results.
    ids = whole.tokenizer(text, verbose=False)["input_ids"]
    positions = [position for position, token in enumerate(ids) if token == mask_id]
    is_single = len(positions) == 1
    for position, predictions in zip(positions, [result] if is_single else result, strict=True):
        for prediction in predictions:
            filled = [*ids[:position], prediction["token"], *ids[position + 1 :]]
            prediction["sequence"] = whole.tokenizer.decode(filled, skip_special_tokens=is_single)
    return with_windows(result, windows.spans)


def score_pair(
    whole: WholeReader, pair: Sequence[str], *, activation_fn: Any = None, apply_softmax: bool = False, **others: Any
) -> Any:
    """The score of a CrossEncoder for a query and a long document. The logits of the windows are merged."""
    if others:
        raise OptionError(f"read_whole takes activation_fn and apply_softmax alone; leave {listed(others)} out.")
    windows = whole.windows_of(pair[1], pair[0], called="first text of the pair", is_second=True)
    activation = whole.reader.activation_fn if activation_fn is None else activation_fn
    score = activation(whole.merged(whole.run(windows.inputs))[None])[0]
    if apply_softmax and len(score) > 1:
        score = score.softmax(0)
    return with_windows(score.item() if len(score) == 1 else score.tolist(), windows.spans)


def answer_question(whole: WholeReader, example: Mapping[str, Any]) -> Any:
    """The answer of a QAReader, which reads windows by itself. Its windows are computed to report them."""
    windows = whole.windows_of(example["context"], example["question"], called="question", is_second=True)
    reader = copy(whole.reader)
    reader.tokenizer, reader.stride = whole.tokenizer, windows.shared
    return with_windows({"answer": reader.answer(example)}, windows.spans)


def find_entities(whole: WholeReader, text: str, labels: Any, **kwargs: Any) -> Any:
    """The entities that a GLiNER finds in windows of words.

    Of overlapping entities, the one with the highest score is kept. With ``flat_ner=False``, overlapping entities are
    kept, and only entities that were found twice are left out.
    """
    # Windows of words
    words = [(start, end) for _, start, end in whole.reader.data_processor.words_splitter(text)] or [(0, len(text))]
    stop, step = max(1, len(words) - whole.stride), whole.limit - whole.stride
    windows = [words[first : first + whole.limit] for first in range(0, stop, step)]
    spans = [(window[0][0], window[-1][1]) for window in windows]

    # Entities of all windows
    entities = list[dict[str, Any]]()
    for start, end in spans:
        for entity in whole.reader.predict_entities(text[start:end], labels, **kwargs):
            entities.append({**entity, "start": entity["start"] + start, "end": entity["end"] + start})

    # The best of overlapping entities
    chosen: dict[tuple[int, int, str], Any] = {}
    for entity in sorted(entities, key=lambda entity: -entity["score"]):
        start, end = entity["start"], entity["end"]
        key = (start, end, entity["label"])
        overlaps = any(other_start < end and start < other_end for other_start, other_end, _ in chosen)
        if key not in chosen and not (kwargs.get("flat_ner", True) and overlaps):
            chosen[key] = entity
    return with_windows(sorted(chosen.values(), key=lambda entity: entity["start"]), spans)


TASKS: dict[str, Callable[..., Any]] = {
    "text-classification": classify_text,
    "zero-shot-classification": classify_by_hypotheses,
    "token-classification": tag_tokens,
    "feature-extraction": extract_features,
    "fill-mask": fill_masks,
    "CrossEncoder": score_pair,
    "QAReader": answer_question,
    GLINER: find_entities,
}
"""Task of a pipeline, or class of a reader -> the function that reads one text with it."""
MERGING = (classify_text, classify_by_hypotheses, score_pair)
"""The functions that merge scores of windows, and so need ``merge``."""
INPUTS: dict[Callable[..., Any], str] = {
    classify_text: "a text, or {'text': ..., 'text_pair': ...}",
    score_pair: "a pair of two texts, such as ('Where?', 'In Geneva.')",
    answer_question: "{'question': ..., 'context': ...}",
}
"""Function of :data:`TASKS` -> description of its input, for messages. The input of other functions is a text."""
