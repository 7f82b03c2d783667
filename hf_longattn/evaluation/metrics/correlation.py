"""Spearman's and Pearson's correlation of predicted similarities with scores, by SciPy. Standard errors are those of Bonett & Wright (2000,
equation 4), and of Fisher for Pearson's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from hf_longattn.errors import needs_extra
from hf_longattn.evaluation.described import DescribedMetric
from hf_longattn.evaluation.summaries import Estimate, in_percent, standard_error

EXAMPLE = ([0.1, 0.5, 0.9], [1.0, 2.0, 3.0], "spearman")
"""Predictions and references that agree, and the score that is then 100; the tests compute it."""


class Correlation(DescribedMetric):
    """Predictions are similarities, references scores.

    Returns a dict: spearman and pearson in per cent, their standard errors (spearman_se, pearson_se) for ten pairs or more, and n, the
    number of pairs. Similarities or scores that are all equal have no correlations, which are then left out.
    """

    items = "float64", "float64"

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return correlations(predictions, references)


def correlations(similarities: Sequence[float], scores: Sequence[float]) -> dict[str, float]:
    """Both correlations in per cent with their standard errors, if they exist, and ``n`` pairs.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    with needs_extra("metrics"):
        from scipy import stats

    count = len(scores)
    results: dict[str, Estimate] = {}
    for name, correlate in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)) if count > 1 else ():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = float(correlate(similarities, scores).statistic)  # nan if either side is constant
        if math.isfinite(value):
            spread = 1 + value**2 / 2 if name == "spearman" else 1.0
            results[name] = value, standard_error(spread / max(1, count - 3) * (1 - value**2) ** 2, count)
    return in_percent(results, count)
