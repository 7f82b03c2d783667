"""Pipelines that read texts of any length whole, and never cut them in silence.

A text that the model can read in one pass is read in one pass. A longer one is read in windows of tokens that overlap,
and their results are merged as the task needs. Where two windows overlap, each token belongs to the one in which it is
farther from the edge.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Pipeline
from transformers.modeling_outputs import BaseModelOutput

from ..data.tokenization import longest_input
from ..errors import InputError, OptionError, listed
from ..modeling.inference import evaluating

BATCH = 8
"""Windows in a forward pass."""
GLINER = "GLiNER"
MERGES: dict[str, Callable[[Tensor], Tensor]] = {"mean": lambda odds: odds.mean(0), "max": lambda odds: odds.amax(0)}
"""How the log odds ``(windows, labels)`` of a text become one row."""
Spans = list[tuple[int, int]]
"""First and last character, exclusive, of the windows in which a text was read."""


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


@dataclass(frozen=True)
class Windows:
    """The windows of a text.

    inputs: what the model takes, ``(windows, n)``, padded if there are several.
    offsets: ``(windows, n, 2)``, first and last character of each token in the text.
    in_text: ``(windows, n)`` bool, tokens of the text; others are special ones, padding, or a question.
    owned: ``(windows, n)`` bool, tokens that belong to this window: with special ones at the text's ends, each once.
    first: number of each window's first token in the text.
    """

    inputs: dict[str, Tensor]
    offsets: Tensor
    in_text: Tensor
    owned: Tensor
    first: list[int]

    @property
    def spans(self) -> Spans:
        ends = [
            offsets[of_text].flatten().tolist() for offsets, of_text in zip(self.offsets, self.in_text, strict=True)
        ]
        return [(characters[0], characters[-1]) if characters else (0, 0) for characters in ends]


def read_whole(reader: Any, *, merge: str | None = None, stride: int = 128) -> WholeReader:
    """Let a pipeline read texts of any length, in one pass where the model can, else in windows.

        tagger = hf_longattn.read_whole(pipeline("token-classification", "dslim/bert-base-NER"))
        entities = tagger(contract, aggregation_strategy="simple")
        entities.windows  # first and last character of each window

    ==============================  ===============================================================================
    reader                          how the windows of a long text become one result
    ==============================  ===============================================================================
    token-classification            an entity once, as with the pipeline's ``stride``; offsets are of the whole text
    feature-extraction, fill-mask   each token by the window in which it is farthest from the edge
    text-classification, zero-shot  ``merge``: mean or maximum of each label's log odds against all others
    CrossEncoder                    ``merge``: mean or maximum of the logits; the second text is divided
    QAReader                        the best span of all windows
    GLiNER                          an entity once, the surer one of two that overlap
    ==============================  ===============================================================================

    Results are those of the reader, with an attribute ``windows``.

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
            self.tokenizer = reader.tokenizer
            self.model = reader[0].model if task == "CrossEncoder" else reader.model
            self.limit = reader.length if task == "QAReader" else longest_input(self.model, self.tokenizer)
            if not self.tokenizer.is_fast:
                raise OptionError(
                    f"{type(self.tokenizer).__name__} does not tell where in a text its tokens are; load the fast "
                    "tokenizer."
                )
        self.stride = min(stride, self.limit // 4)

    def __call__(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of one text, or a list with that of each."""
        is_pair = self.read is score_pair and len(texts) == 2 and isinstance(texts[0], str)
        if isinstance(texts, str | Mapping) or is_pair:
            return self.read(self, texts, *args, **kwargs)
        return [self.read(self, text, *args, **kwargs) for text in texts]

    def windows_of(self, text: str, beside: str | None = None, *, is_second: bool = False, spared: int = 0) -> Windows:
        """The windows of ``text``, each with the text ``beside``, a question or hypothesis that is never cut.

        is_second: whether ``text`` stands behind the other one.
        spared: tokens that windows leave free.
        """
        try:
            encoded = self.tokenizer(
                *((beside, text) if is_second else (text, beside)),
                truncation="only_second" if is_second else "only_first",
                max_length=self.limit - spared,
                stride=self.stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
        except Exception as error:  # the tokenizers library has no class of its own
            taken = len(self.tokenizer(beside)["input_ids"])
            raise InputError(
                f"The other text takes {taken:,} of {self.limit:,} tokens, which leaves no room; shorten it."
            ) from error
        count = len(encoded["input_ids"])
        in_text = [[number == int(is_second) for number in encoded.sequence_ids(window)] for window in range(count)]
        first = [0]
        for flags in in_text[:-1]:
            first.append(first[-1] + sum(flags) - self.stride)
        # the border between two windows is in the middle of the tokens that they share
        borders = [0, *[start + self.stride - self.stride // 2 for start in first[1:]], first[-1] + sum(in_text[-1])]
        owned = []
        for window, flags in enumerate(in_text):
            token, is_owned = first[window], list[bool]()
            for is_text in flags:
                if is_text:
                    is_owned.append(borders[window] <= token < borders[window + 1])
                    token += 1
                else:  # before the text, or behind it
                    is_owned.append(window == (0 if token == first[window] else count - 1))
            owned.append(is_owned)
        inputs = {name: encoded[name] for name in self.tokenizer.model_input_names if name in encoded}
        if count > 1:
            inputs = self.tokenizer.pad(inputs, padding_side="right")
        longest = len(inputs["input_ids"][0])
        offsets, of_text, owns = (
            torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
            for rows, fill in ((encoded["offset_mapping"], (0, 0)), (in_text, False), (owned, False))
        )
        return Windows({name: torch.tensor(rows) for name, rows in inputs.items()}, offsets, of_text, owns, first)

    def run(self, windows: Windows) -> Tensor:
        """The model's first output for every window, in float32 on the CPU."""
        no_cache = {"use_cache": False} if "use_cache" in inspect.signature(self.model.forward).parameters else {}
        outputs = []
        with evaluating(self.model), torch.inference_mode():
            for start in range(0, len(windows.owned), BATCH):
                inputs = {name: x[start : start + BATCH].to(self.model.device) for name, x in windows.inputs.items()}
                outputs.append(self.model(**inputs, **no_cache)[0].float().cpu())
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
    logits, config = whole.run(windows), whole.model.config
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
        scores.append(whole.run(windows)[:, [contradiction, entailment]])
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
    columns = {
        "logits": whole.run(windows),
        "special_tokens_mask": ~read,
        "offset_mapping": windows.offsets,
        "input_ids": windows.inputs["input_ids"],
    }
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
    states = whole.run(windows)[windows.owned]
    result = whole.reader.postprocess(BaseModelOutput(last_hidden_state=states[None]), **after)
    return result if isinstance(result, Tensor) else with_windows(result, windows.spans)


def fill_masks(whole: WholeReader, text: str, **kwargs: Any) -> Any:
    _, after = whole.settings(text, **kwargs)
    windows, mask_id = whole.windows_of(text), whole.tokenizer.mask_token_id
    masked = (windows.inputs["input_ids"] == mask_id) & windows.owned
    if not masked.any():
        raise InputError(f"The text has no {whole.tokenizer.mask_token}; write it where a word is to be predicted.")
    outputs = {"input_ids": windows.inputs["input_ids"][masked][None], "logits": whole.run(windows)[masked][None]}
    result = whole.reader.postprocess(outputs, **after)
    ids = whole.tokenizer(text)["input_ids"]
    places = [place for place, token in enumerate(ids) if token == mask_id]
    for place, predictions in zip(places, [result] if len(places) == 1 else result, strict=True):
        for prediction in predictions:
            filled = [*ids[:place], prediction["token"], *ids[place + 1 :]]
            prediction["sequence"] = whole.tokenizer.decode(filled, skip_special_tokens=len(places) == 1)
    return with_windows(result, windows.spans)


def score_pair(whole: WholeReader, pair: Sequence[str], **kwargs: Any) -> Any:
    windows = whole.windows_of(pair[1], pair[0], is_second=True)
    score = kwargs.get("activation_fn", whole.reader.activation_fn)(whole.merged(whole.run(windows)))
    return with_windows(score.item() if len(score) == 1 else score.tolist(), windows.spans)


def answer_question(whole: WholeReader, example: Mapping[str, Any]) -> Any:
    windows = whole.windows_of(example["context"], example["question"], is_second=True)
    reader = copy(whole.reader)
    reader.stride = whole.stride
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
