"""From start and end scores to the text of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_longattn.training.qa_features import QAFeature


@dataclass(frozen=True)
class Span:
    """A candidate answer: its ``text``, its characters ``start`` … ``end`` in the context, its ``score``.

    ``score`` is the sum of the start and end scores less those of "no answer here" (the first token) of the same input,
    so that spans of different windows compare; it is below zero when the model prefers no answer.
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
        start_scores, end_scores: per input, an array (≥ L,) of logits; padding behind L is ignored.
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
