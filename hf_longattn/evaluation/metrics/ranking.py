"""Scores of the ranking of each query's candidates. They are the share of queries whose first candidate is relevant, the mean reciprocal
rank of the first relevant one, and scikit-learn's nDCG (Järvelin & Kekäläinen 2002). The latter two count the first ten candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_longattn.errors import needs_extra
from hf_longattn.evaluation.described import DescribedMetric
from hf_longattn.evaluation.summaries import means_in_percent

NAMES = ("accuracy_at_1", "mrr", "ndcg")
DEPTH = 10
"""Candidates that count, the best first."""
EXAMPLE = ([[0.9, 0.1], [-2.0, -1.0, -3.0]], [[1, 0], [0, 1, 0]], "mrr")
"""Predictions and references that agree, and the score that is then 100; the tests compute it."""


class Ranking(DescribedMetric):
    """Predictions are the scores of a query's candidates, references their relevance, 1 or 0, in the same order.

    The highest score is for the best. Returns a dict: accuracy_at_1, mrr and ndcg in per cent, their standard errors (mrr_se, ...) for ten
    queries or more, and n, the number of queries. Relevant candidates rank last among those of the same score, and so does a score that is
    not a number; nDCG is the mean over the orders of equal scores.
    """

    items = ["float64"], ["int64"]

    def _compute(self, predictions: list[list[float]], references: list[list[int]]) -> dict[str, float]:
        return means_in_percent(NAMES, [rank_scores(scores, relevance) for scores, relevance in zip(predictions, references, strict=True)])


def rank_scores(scores: Sequence[float], relevance: Sequence[int]) -> tuple[float, float, float]:
    """One query's :data:`NAMES`, from 0 to 1.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    with needs_extra("metrics"):
        from sklearn.metrics import ndcg_score

    if not any(relevance):
        return 0.0, 0.0, 0.0
    numbers, relevant = np.nan_to_num(scores, nan=-np.finfo(float).max), np.asarray(relevance, bool)
    rank = 1 + int((numbers[~relevant] >= numbers[relevant].max()).sum())
    gain = float(ndcg_score([relevance], [numbers], k=DEPTH)) if len(relevance) > 1 else 1.0
    return float(rank == 1), 1 / rank if rank <= DEPTH else 0.0, gain
