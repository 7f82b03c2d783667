"""How well scores rank the candidates of each query: the share of queries whose first candidate is relevant, the mean reciprocal rank of
the first relevant one, and nDCG (Järvelin & Kekäläinen 2002) with relevance 0 or 1, the latter two among the first ten."""

from __future__ import annotations

import math
from collections.abc import Sequence

import datasets
import evaluate

from hf_longattn.evaluation.summaries import means_in_percent

NAMES = ("accuracy_at_1", "mrr", "ndcg")
DEPTH = 10
"""Candidates that count, the best first."""
_KWARGS = """
predictions: list of the scores of a query's candidates, the highest for the best.
references: list of their relevance, 1 or 0, in the same order.
Returns a dict: accuracy_at_1, mrr and ndcg in per cent, their standard errors (mrr_se, ...), and n, the number of queries. Relevant
candidates rank last among those of the same score.
"""
EXAMPLE = ([[0.9, 0.1], [-2.0, -1.0, -3.0]], [[1, 0], [0, 1, 0]], "mrr")
"""Predictions and references that agree, and the score that is then 100; the tests compute it."""


class Ranking(evaluate.Metric):
    """``evaluate.Metric`` with the scores and the relevance of the candidates of each query."""

    def _info(self) -> evaluate.MetricInfo:
        scores, relevance = datasets.Value("float64"), datasets.Value("int64")
        features = datasets.Features({"predictions": datasets.Sequence(scores), "references": datasets.Sequence(relevance)})
        return evaluate.MetricInfo(description=__doc__ or "", citation="", inputs_description=_KWARGS, features=features)

    def _compute(self, predictions: list[list[float]], references: list[list[int]]) -> dict[str, float]:
        return means_in_percent(NAMES, [rank_scores(scores, relevance) for scores, relevance in zip(predictions, references, strict=True)])


def rank_scores(scores: Sequence[float], relevance: Sequence[int]) -> tuple[float, float, float]:
    """One query's :data:`NAMES`, from 0 to 1."""
    ranked = sorted(zip(scores, relevance, strict=True), key=lambda candidate: (-candidate[0], candidate[1]))
    ranks = [rank for rank, (_, relevant) in enumerate(ranked[:DEPTH], start=1) if relevant]
    if not ranks:
        return 0.0, 0.0, 0.0
    ideal = range(1, min(DEPTH, sum(relevance)) + 1)
    return float(ranks[0] == 1), 1 / ranks[0], _gain(ranks) / _gain(ideal)


def _gain(ranks: Sequence[int]) -> float:
    """The discounted cumulative gain of relevant candidates at these ranks."""
    return sum(1 / math.log2(rank + 1) for rank in ranks)
