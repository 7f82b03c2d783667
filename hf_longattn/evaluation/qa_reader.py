"""Answers questions about long documents. Documents are read whole, cut or in windows; the best span of all inputs wins."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.data.qa_features import QAEncodingConfig, QAFeature, encode_qa, pad_features, pad_targets
from hf_longattn.errors import OptionError
from hf_longattn.modeling.attach.token_globals import takes_globals, token_rule
from hf_longattn.modeling.inference.optimize import evaluating

RECORDS_AT_ONCE = 256
"""Examples whose inputs are sorted by length together."""


class QAReader:
    """Answers with the best span of a document, which ``encoding`` reads whole, cut or in windows.

    Args:
        name: the row's name in tables.
        model: a question-answering model.
        tokenizer: its tokenizer.
        encoding: of documents as inputs.
        batch_size: windows per forward pass.
        dtype: autocast to this type; None = the model's own.
        max_answer_tokens: longest answer.
        null_threshold: answer "" when the best span's score minus that of "no answer" is below this; None = the config's
            ``no_answer_threshold``, which training writes; without it, always answer.
        n_best: candidates kept in :meth:`read`.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoding: QAEncodingConfig,
        *,
        batch_size: int = 8,
        dtype: torch.dtype | None = None,
        max_answer_tokens: int = 30,
        null_threshold: float | None = None,
        n_best: int = 20,
    ) -> None:
        if encoding.global_question and (
            token_rule(model) is not None or not takes_globals(model)
        ):  # the model marks them itself, or has no global tokens
            encoding = dataclasses.replace(encoding, global_question=False)
        self.name, self.model, self.tokenizer, self.encoding = name, model, tokenizer, encoding
        self.batch_size, self.dtype = batch_size, dtype
        self.max_answer_tokens, self.n_best = max_answer_tokens, n_best
        config = getattr(model, "config", None)
        self.null_threshold = getattr(config, "no_answer_threshold", None) if null_threshold is None else null_threshold

    def answer(self, example: Mapping[str, Any]) -> str:
        """Return the answer's text, "" for none."""
        return self.read([{**example, "answers": None}])[0].text

    def read(self, examples: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Answers with their candidates, in the order of ``examples``; inputs of similar length share a forward pass.

        Where examples have answers, each :class:`Answer` has the losses of its inputs.
        """
        answers: list[Answer] = []
        for first in range(0, len(examples), RECORDS_AT_ONCE):
            answers += self._read([examples[place] for place in range(first, min(first + RECORDS_AT_ONCE, len(examples)))])
        return answers

    def _read(self, examples: Sequence[Mapping[str, Any]]) -> list[Answer]:
        inputs = [_Input(number, feature) for number, example in enumerate(examples) for feature in self.encode(example)]
        order = sorted(inputs, key=lambda item: len(item.feature), reverse=True)
        with evaluating(self.model):
            for place in range(0, len(order), self.batch_size):
                self._score(order[place : place + self.batch_size])
        by_example: list[list[_Input]] = [[] for _ in examples]
        for item in inputs:
            by_example[item.example_number].append(item)
        return [self._choose(example, parts) for example, parts in zip(examples, by_example, strict=True)]

    def encode(self, example: Mapping[str, Any]) -> list[QAFeature]:
        """The inputs made of an example.

        Raises:
            OptionError: the example has no ``question`` or no ``context``.
        """
        if not all(isinstance(example.get(name), str) for name in ("question", "context")):
            known = ", ".join(repr(name) for name, value in example.items() if value is not None)
            raise OptionError(f"An example must have 'question' and 'context', both texts; it has {known or 'nothing'}.")
        return encode_qa(example, self.tokenizer, self.encoding)

    def _choose(self, example: Mapping[str, Any], parts: Sequence[_Input]) -> Answer:
        features = [part.feature for part in parts]
        starts, ends = [part.starts for part in parts], [part.ends for part in parts]
        spans = n_best_spans(example["context"], features, starts, ends, n_best=self.n_best, max_answer_tokens=self.max_answer_tokens)
        places = sorted({offset for feature in features for offset in feature.offsets if offset is not None})
        answers = example.get("answers") or {"answer_start": []}
        first = min(answers["answer_start"], default=None)
        position = -1 if first is None else bisect_right(places, (first, np.inf)) - 1
        answer = Answer("", spans, tuple(part.loss for part in parts), len(places), position)
        return dataclasses.replace(answer, text=answer.above(self.null_threshold))

    @torch.inference_mode()
    def _score(self, batch: Sequence[_Input]) -> None:
        device, features = self.model.device, [item.feature for item in batch]
        inputs = {key: value.to(device) for key, value in pad_features(features, self.tokenizer.pad_token_id or 0).items()}
        with torch.autocast(device.type, self.dtype) if self.dtype is not None else nullcontext():
            outputs = self.model(**inputs)
            targets = {name: value.to(device) for name, value in pad_targets(features).items()}
            losses = qa_loss(outputs, {**targets, "attention_mask": inputs["attention_mask"]}).tolist()
        for row, item in enumerate(batch):
            item.starts, item.ends = (scores[row].float().cpu().numpy() for scores in (outputs.start_logits, outputs.end_logits))
            item.loss = losses[row]


class _Input:
    """One of an example's inputs, and the model's scores for it."""

    def __init__(self, number: int, feature: QAFeature) -> None:
        self.example_number, self.feature, self.loss = number, feature, 0.0
        self.starts = self.ends = np.zeros(0)


def windows(max_length: int = 512, stride: int = 128, max_question_tokens: int = 64) -> QAEncodingConfig:
    """Windows of ``max_length`` tokens that share ``stride`` tokens."""
    return QAEncodingConfig(max_length, stride, max_question_tokens=max_question_tokens)


def whole(max_length: int, stride: int = 128, max_question_tokens: int = 64) -> QAEncodingConfig:
    """The whole document; beyond ``max_length`` in windows that share ``stride`` tokens, a quarter at most. The question is global in
    models with global tokens."""
    return QAEncodingConfig(max_length, min(stride, max_length // 4), global_question=True, max_question_tokens=max_question_tokens)


@dataclass(frozen=True)
class Span:
    """A candidate answer: its ``text``, its characters ``start`` … ``end`` in the context, its ``score``.

    ``score`` is the start and end scores minus those of "no answer" (the first token) in the same input, so that windows are comparable. It
    is negative if the model prefers no answer.
    """

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Answer:
    """A reader's answer from one document.

    Attributes:
        text: the answer, "" for none.
        spans: candidates, best first.
        losses: of the document's inputs.
        length: tokens of the document.
        position: tokens before the first right answer; -1 without one.
    """

    text: str
    spans: list[Span]
    losses: tuple[float, ...] = ()
    length: int = 0
    position: int = -1

    @property
    def best(self) -> str:
        """The answer if there must be one."""
        return self.spans[0].text if self.spans else ""

    @property
    def score(self) -> float:
        """By how much the best span is above "no answer"; SQuAD 2's null score difference with the opposite sign."""
        return self.spans[0].score if self.spans else -float("inf")

    def above(self, threshold: float | None) -> str:
        """The answer, "" where the best span's score is below ``threshold``; ``None`` = there must be one."""
        return "" if threshold is not None and self.score < threshold else self.best

    def n_best(self) -> list[dict[str, Any]]:
        """The candidates for SQuAD's ``nbest_predictions.json``. Their probabilities and that of "no answer" sum to 1."""
        scores = np.array([span.score for span in self.spans] + [0.0])
        shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        spans = [*self.spans, Span("", -1, -1, 0.0)]
        rows = [
            {"text": span.text, "score": span.score, "start": span.start, "end": span.end, "probability": float(share)}
            for span, share in zip(spans, shares, strict=True)
        ]
        return sorted(rows, key=lambda row: -row["probability"])


def n_best_spans(
    context: str,
    features: Sequence[QAFeature],
    start_scores: Sequence[np.ndarray],
    end_scores: Sequence[np.ndarray],
    *,
    n_best: int = 20,
    max_answer_tokens: int = 30,
) -> list[Span]:
    """Return the best spans over all inputs made of one document, best first.

    Args:
        context: the document.
        features: its inputs (one, or its windows).
        start_scores, end_scores: per input, an array (≥ L,) of logits; padding after L is ignored.
        n_best: candidates kept; also the number of starts and ends paired in every input.
        max_answer_tokens: longer spans are not considered.
    """
    spans: dict[tuple[int, int], float] = {}
    for feature, starts, ends in zip(features, start_scores, end_scores, strict=True):
        inside = np.array([offset is not None and offset[0] < offset[1] for offset in feature.offsets])  # empty tokens are not answers
        null = float(starts[0] + ends[0])
        starts = np.where(inside, starts[: len(feature)], -np.inf)
        ends = np.where(inside, ends[: len(feature)], -np.inf)
        top_starts, top_ends = _largest(starts, n_best), _largest(ends, n_best)
        scores = starts[top_starts][:, None] + ends[top_ends][None, :] - null
        width = top_ends[None, :] - top_starts[:, None]
        scores = np.where((width >= 0) & (width < max_answer_tokens), scores, -np.inf)
        for flat in _largest(scores.ravel(), n_best):
            score = float(scores.flat[flat])
            first = feature.offsets[top_starts[flat // len(top_ends)]]
            last = feature.offsets[top_ends[flat % len(top_ends)]]
            if np.isfinite(score) and first is not None and last is not None:
                key = (first[0], last[1])
                spans[key] = max(score, spans.get(key, -np.inf))
    best = sorted(spans.items(), key=lambda item: -item[1])[:n_best]
    return [Span(context[start:end].strip(), start, end, score) for (start, end), score in best]


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the ``count`` largest values, largest first."""
    count = min(count, len(values))
    chosen = np.argpartition(-values, count - 1)[:count]
    return chosen[np.argsort(-values[chosen], kind="stable")]


def span_loss(start_logits: Tensor, end_logits: Tensor, starts: Tensor, ends: Tensor, real: Tensor | None = None) -> Tensor:
    """The or-loss of distant supervision: −½ (log Σ p(start) + log Σ p(end)) over each row's correct starts and ends (Clark & Gardner
    2018, equation 2; Longformer's TriviaQA loss). With one answer it is BERT's loss.

    Args:
        start_logits, end_logits: (B, L).
        starts (B, K), ends (B, M): distinct correct tokens, padded with -1; token 0 is "no answer".
        real: (B, L), which tokens are not padding; padding takes part in no probability.

    Returns:
        One loss per row, (B,).
    """
    return (_or_loss(start_logits, starts, real) + _or_loss(end_logits, ends, real)) / 2


def _or_loss(logits: Tensor, places: Tensor, real: Tensor | None) -> Tensor:
    scores = logits.float() if real is None else logits.float().masked_fill(~real.bool(), -torch.inf)
    chosen = torch.log_softmax(scores, -1).gather(1, places.clamp(min=0))
    return -chosen.masked_fill(places < 0, -torch.inf).logsumexp(-1)


def qa_loss(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """The loss of each row of a batch ``(B,)``.

    Args:
        outputs: of a question-answering model, for padded or packed inputs.
        batch: starts, ends; attention_mask or real (padded, (B, L)), or lengths (packed).
    """
    starts, ends, real = outputs.start_logits, outputs.end_logits, batch.get("real", batch.get("attention_mask"))
    if real is None and "lengths" in batch:  # documents of these lengths were packed into one row (1, T)
        documents = (packed[0].split(batch["lengths"].tolist()) for packed in (starts, ends))
        starts, ends = (pad_sequence(list(rows), batch_first=True, padding_value=-torch.inf) for rows in documents)
    return span_loss(starts, ends, batch["starts"], batch["ends"], real)
