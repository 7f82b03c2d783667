"""Answers questions about long documents with a question-answering model: documents are read whole, cut or in windows, and the best span
over all inputs wins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.evaluation.qa_features import QAFeature, QAFormat, encode_qa, pad_features
from hf_longattn.modeling.token_globals import takes_globals, token_rule


class QAReader:
    """Answers with the best span of a document that is read whole, cut or in windows, as ``form`` says.

    Args:
        name: the row's name in tables.
        model: a question-answering model.
        tokenizer: its tokenizer.
        form: how documents become inputs.
        seed: the seed the model was trained with, for tables that average several seeds.
        batch_size: windows per forward pass.
        dtype: autocast to this type; None = the model's own.
        max_answer_tokens: longest answer.
        null_threshold: answer "" when the best span's score minus that of "no answer" is below this; None = always answer.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        form: QAFormat,
        *,
        seed: int | None = None,
        batch_size: int = 8,
        dtype: torch.dtype | None = None,
        max_answer_tokens: int = 30,
        null_threshold: float | None = None,
    ) -> None:
        if form.global_question and (token_rule(model) is not None or not takes_globals(model)):  # the model marks them itself, or has none
            form = dataclasses.replace(form, global_question=False)
        self.name, self.model, self.tokenizer, self.form, self.seed = name, model.eval(), tokenizer, form, seed
        self.batch_size, self.dtype = batch_size, dtype
        self.max_answer_tokens, self.null_threshold = max_answer_tokens, null_threshold

    def answer(self, record: Mapping[str, Any]) -> str:
        """Return the answer's text, "" for none."""
        features = encode_qa({**record, "answers": None}, self.tokenizer, self.form)
        starts, ends = [], []
        for place in range(0, len(features), self.batch_size):
            outputs = self._forward(features[place : place + self.batch_size])
            starts.extend(outputs.start_logits.float().cpu().numpy())
            ends.extend(outputs.end_logits.float().cpu().numpy())
        spans = n_best_spans(record["context"], features, starts, ends, n_best=5, max_answer_tokens=self.max_answer_tokens)
        if not spans or (self.null_threshold is not None and spans[0].score < self.null_threshold):
            return ""
        return spans[0].text

    @torch.inference_mode()
    def _forward(self, features: Sequence[QAFeature]) -> Any:
        device, padding = self.model.device, self.tokenizer.pad_token_id
        inputs = {key: value.to(device) for key, value in pad_features(features, 0 if padding is None else padding).items()}
        with torch.autocast(device.type, self.dtype) if self.dtype is not None else nullcontext():
            return self.model(**inputs)


def truncated(max_length: int = 512, max_question_tokens: int = 64) -> QAFormat:
    """The document cut to what fits."""
    return QAFormat(max_length, max_question_tokens=max_question_tokens)


def windows(max_length: int = 512, stride: int = 128, max_question_tokens: int = 64) -> QAFormat:
    """Windows of ``max_length`` tokens that share ``stride`` tokens."""
    return QAFormat(max_length, stride, max_question_tokens=max_question_tokens)


def whole(max_length: int, stride: int = 128, max_question_tokens: int = 64) -> QAFormat:
    """The whole document; beyond ``max_length`` in windows that share ``stride`` tokens, a quarter at most. The question is global in
    models with global tokens."""
    return QAFormat(max_length, min(stride, max_length // 4), global_question=True, max_question_tokens=max_question_tokens)


@dataclass(frozen=True)
class Span:
    """A candidate answer: its ``text``, its characters ``start`` … ``end`` in the context, its ``score``.

    ``score`` is the sum of the start and end scores less those of "no answer here" (the first token) of the same input,
    so that spans of different windows compare; it is below zero if the model prefers no answer.
    """

    text: str
    start: int
    end: int
    score: float


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
        inside = np.array([offset is not None for offset in feature.offsets])
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
