"""Pipelines that read texts of any length whole, and never cut them in silence.

A text that the model can read in one pass is read in one pass. A longer one is read in windows of tokens that overlap,
and their results are merged as the task needs. Each token belongs to one window (:func:`.token_windows`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Pipeline
from transformers.modeling_outputs import BaseModelOutput

from ..data.tokenization import longest_input
from ..errors import InputError, OptionError, listed
from ..modeling.inference import evaluating
from .windows import Spans, Windows, text_windows

BATCH = 8
"""Windows in a forward pass."""
GLINER = "GLiNER"
MERGES: dict[str, Callable[[Tensor], Tensor]] = {"mean": lambda odds: odds.mean(0), "max": lambda odds: odds.amax(0)}
"""How the log odds ``(windows, labels)`` of a text become one row."""


class ReadDict(dict[str, Any]):
    windows: Spans


class ReadList(list[Any]):
    windows: Spans


class ReadScore(float):
    windows: Spans


def with_windows(result: Any, spans: Spans) -> Any:
    """``result`` with an attribute ``windows``."""
    read: Any = {dict: ReadDict, list: ReadList, float: ReadScore}[type(result)](result)
    read.windows = spans
    return read


def read_whole(reader: Any, *, merge: str | None = None, stride: int = 128) -> WholeReader:
    """Let a pipeline read texts of any length, in one pass where the model can, else in windows.

        tagger = hf_longattn.read_whole(pipeline("token-classification", "dslim/bert-base-NER"))
        entities = tagger(contract, aggregation_strategy="simple")
        entities.windows  # first and last character of each window

    Results are those of the reader, with an attribute ``windows``. docs/how-to/stock.md says how the windows of each
    reader become one result.

    Args:
        reader: a pipeline of transformers with a fast tokenizer, a CrossEncoder of sentence-transformers, a
            :class:`~hf_longattn.evaluation.qa_reader.QAReader`, or a GLiNER.
        merge: "mean" or "max", for tasks that score a text as a whole. Without it, a longer text is refused.
        stride: tokens that two windows share, or words for GLiNER; at most a quarter of a window.

    Raises:
        OptionError: another kind of reader, an unknown ``merge``, or a tokenizer that does not tell where tokens are.
        InputError: at a call, a text would be cut, because ``merge`` is not given or a question leaves no room.
    """
    return WholeReader(reader, merge, stride)


class WholeReader:
    """The function that :func:`read_whole` returns. It takes the reader's arguments: a text, or a list of texts."""

    def __init__(self, reader: Any, merge: str | None, stride: int) -> None:
        name = reader.task if isinstance(reader, Pipeline) else type(reader).__name__
        task = GLINER if hasattr(reader, "predict_entities") else name
        if task not in TASKS:
            raise OptionError(f"read_whole takes pipelines and readers for {listed(sorted(TASKS))}, not {task!r}.")
        if merge is not None and merge not in MERGES:
            raise OptionError(f"merge is {merge!r}; give {listed([repr(name) for name in MERGES])}.")
        if isinstance(stride, bool) or not isinstance(stride, int) or stride < 0:
            raise OptionError(f"stride is {stride!r}, but must be a number of tokens, 0 or more.")
        self.reader, self.merge, self.read = reader, merge, TASKS[task]
        if task == GLINER:
            self.limit = int(reader.config.max_len)
        else:
            self.tokenizer = copy(reader.tokenizer)
            self.tokenizer.truncation_side = "right"  # windows are numbered from the text's beginning
            self.model = reader[0].model if task == "CrossEncoder" else reader.model
            self.limit = reader.length if task == "QAReader" else longest_input(self.model, self.tokenizer)
            if not self.tokenizer.is_fast:
                raise OptionError(
                    f"{type(self.tokenizer).__name__} does not tell where in a text its tokens are; load the fast "
                    "tokenizer."
                )
            if self.tokenizer.pad_token is None:
                raise OptionError("The tokenizer has no padding token; set tokenizer.pad_token, and the model's, too.")
        self.stride = min(stride, self.limit // 4)

    def __call__(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of one text, or a list with that of each."""
        is_pair = self.read is score_pair and len(texts) == 2 and isinstance(texts[0], str)
        if isinstance(texts, str | Mapping) or is_pair:
            return self.read(self, texts, *args, **kwargs)
        return [self.read(self, text, *args, **kwargs) for text in texts]

    def windows_of(self, text: str, beside: str | None = None, *, is_second: bool = False, spared: int = 0) -> Windows:
        """:func:`.text_windows`. spared: tokens that windows leave free."""
        limit = self.limit - spared
        return text_windows(self.tokenizer, text, beside, limit=limit, stride=self.stride, is_second=is_second)

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The model's first output for the inputs of every window, in float32 on the CPU."""
        no_cache = {"use_cache": False} if "use_cache" in inspect.signature(self.model.forward).parameters else {}
        outputs = []
        with evaluating(self.model), torch.inference_mode():
            for start in range(0, len(inputs["input_ids"]), BATCH):
                batch = {name: x[start : start + BATCH].to(self.model.device) for name, x in inputs.items()}
                outputs.append(self.model(**batch, **no_cache)[0].float().cpu())
        return torch.cat(outputs)

    def merged(self, odds: Tensor) -> Tensor:
        """One row ``(labels,)`` of the log odds ``(windows, labels)`` of a text."""
        if len(odds) > 1 and self.merge is None:
            raise InputError(
                f"The text takes {len(odds)} windows of {self.limit:,} tokens; say how to merge their scores, with "
                "read_whole(..., merge='mean') or merge='max'."
            )
        return odds[0] if len(odds) == 1 else MERGES[str(self.merge)](odds)

    def settings(self, text: Any, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings of the pipeline's first and last step for a call, which would run with them."""
        probe, settings = copy(self.reader), list[dict[str, Any]]()

        def note(inputs: Any, *steps: Any) -> Iterator[None]:
            settings.extend(steps[-3:])
            return iter([None])

        probe.run_single = probe.get_iterator = note
        probe(text, *args, **kwargs)
        return settings[0], settings[2]


def log_odds(scores: Tensor) -> Tensor:
    """The log odds ``(windows, labels)`` of each label against all others, of logits that a softmax takes."""
    others = scores.unsqueeze(1).expand(-1, scores.shape[1], -1).clone()
    others.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return scores - others.logsumexp(-1)


def classify_text(whole: WholeReader, text: Any, **kwargs: Any) -> Any:
    _, after = whole.settings(text, **kwargs)
    parts = text if isinstance(text, Mapping) else {"text": text}
    windows = whole.windows_of(parts["text"], parts.get("text_pair"))
    logits, config = whole.run(windows.inputs), whole.model.config
    if len(logits) > 1:
        function = getattr(after.get("function_to_apply"), "value", None)
        one_label = config.num_labels > 1 and config.problem_type in (None, "single_label_classification")
        if function == "softmax" or (function is None and one_label):
            logits, after = log_odds(logits), {**after, "function_to_apply": "sigmoid"}
    result = whole.reader.postprocess({"logits": whole.merged(logits)[None]}, **after)
    read = with_windows(result, windows.spans)
    return read if "top_k" in kwargs or isinstance(text, Mapping) else with_windows([read], windows.spans)


def classify_by_hypotheses(whole: WholeReader, text: str, *labels: Any, **kwargs: Any) -> Any:
    before, after = whole.settings(text, *labels, **kwargs)
    names, entailment = before["candidate_labels"], whole.reader.entailment_id
    contradiction = -1 if entailment == 0 else 0
    hypotheses = [before.get("hypothesis_template", "This example is {}.").format(name) for name in names]
    lengths = [len(whole.tokenizer(hypothesis)["input_ids"]) for hypothesis in hypotheses]
    scores = []
    for hypothesis, length in zip(hypotheses, lengths, strict=True):  # all have the same windows
        windows = whole.windows_of(text, hypothesis, spared=max(lengths) - length)
        scores.append(whole.run(windows.inputs)[:, [contradiction, entailment]])
    logits = torch.stack(scores, 1)  # (windows, labels, 2)
    by_itself = after.get("multi_label") or len(names) == 1
    row = whole.merged(logits[..., 1] - logits[..., 0] if by_itself else log_odds(logits[..., 1])).sigmoid()
    order = row.argsort(descending=True).tolist()
    result = {"sequence": text, "labels": [names[number] for number in order], "scores": row[order].tolist()}
    return with_windows(result, windows.spans)


def tag_tokens(whole: WholeReader, text: str, **kwargs: Any) -> Any:
    _, after = whole.settings(text, **kwargs)
    windows = whole.windows_of(text)
    by_token = getattr(after.get("aggregation_strategy"), "value", "none") == "none"
    read = windows.in_text & windows.owned if by_token else windows.in_text
    columns = {"special_tokens_mask": ~read, "offset_mapping": windows.offsets, **windows.inputs}
    columns["logits"] = whole.run(windows.inputs)
    outputs = [
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


def extract_features(whole: WholeReader, text: str, **kwargs: Any) -> Any:
    _, after = whole.settings(text, **kwargs)
    windows = whole.windows_of(text)
    states = whole.run(windows.inputs)[windows.owned]
    result = whole.reader.postprocess(BaseModelOutput(last_hidden_state=states[None]), **after)
    return result if isinstance(result, Tensor) else with_windows(result, windows.spans)


def fill_masks(whole: WholeReader, text: str, **kwargs: Any) -> Any:
    _, after = whole.settings(text, **kwargs)
    windows, mask_id = whole.windows_of(text), whole.tokenizer.mask_token_id
    masked = (windows.inputs["input_ids"] == mask_id) & windows.owned
    if not masked.any():
        raise InputError(f"The text has no {whole.tokenizer.mask_token}; write it where a word is to be predicted.")
    used = masked.any(1)
    inputs = {name: x[used] for name, x in windows.inputs.items()}
    outputs = {"input_ids": windows.inputs["input_ids"][masked][None], "logits": whole.run(inputs)[masked[used]][None]}
    result = whole.reader.postprocess(outputs, **after)
    ids = whole.tokenizer(text, verbose=False)["input_ids"]
    places = [place for place, token in enumerate(ids) if token == mask_id]
    for place, predictions in zip(places, [result] if len(places) == 1 else result, strict=True):
        for prediction in predictions:
            filled = [*ids[:place], prediction["token"], *ids[place + 1 :]]
            prediction["sequence"] = whole.tokenizer.decode(filled, skip_special_tokens=len(places) == 1)
    return with_windows(result, windows.spans)


def score_pair(whole: WholeReader, pair: Sequence[str], **kwargs: Any) -> Any:
    windows = whole.windows_of(pair[1], pair[0], is_second=True)
    score = kwargs.get("activation_fn", whole.reader.activation_fn)(whole.merged(whole.run(windows.inputs)))
    return with_windows(score.item() if len(score) == 1 else score.tolist(), windows.spans)


def answer_question(whole: WholeReader, example: Mapping[str, Any]) -> Any:
    windows = whole.windows_of(example["context"], example["question"], is_second=True)
    reader = copy(whole.reader)
    reader.tokenizer, reader.stride = whole.tokenizer, whole.stride
    return with_windows({"answer": reader.answer(example)}, windows.spans)


def find_entities(whole: WholeReader, text: str, labels: Any, **kwargs: Any) -> Any:
    words = [(start, end) for _, start, end in whole.reader.data_processor.words_splitter(text)] or [(0, len(text))]
    last, step = max(1, len(words) - whole.stride), whole.limit - whole.stride
    windows = [words[first : first + whole.limit] for first in range(0, last, step)]
    spans = [(window[0][0], window[-1][1]) for window in windows]
    entities = list[dict[str, Any]]()
    for start, end in spans:
        for entity in whole.reader.predict_entities(text[start:end], labels, **kwargs):
            entities.append({**entity, "start": entity["start"] + start, "end": entity["end"] + start})
    chosen: dict[tuple[int, int, str], Any] = {}
    for entity in sorted(entities, key=lambda entity: -entity["score"]):
        first, last, label = entity["start"], entity["end"], entity["label"]
        overlaps = any(start < last and first < end for start, end, _ in chosen)
        if (first, last, label) not in chosen and not (kwargs.get("flat_ner", True) and overlaps):
            chosen[first, last, label] = entity
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
"""What reads one text, by a pipeline's task or a reader's class."""
