"""Spearman's and Pearson's correlation of predicted similarities with scores; standard errors of Bonett & Wright (2000, equation 4), and
of Fisher for Pearson's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

_KWARGS = """
predictions: list of similarities.
references: list of scores.
Returns a dict: spearman and pearson in per cent, their standard errors (spearman_se, pearson_se), and n, the number of pairs. Similarities
or scores that are all equal have no correlations, which are then left out.
"""
EXAMPLE = ([0.1, 0.5, 0.9], [1.0, 2.0, 3.0], "spearman")
"""Predictions and references that agree, and the score that is then 100; the tests compute it."""


class Correlation(evaluate.Metric):
    """``evaluate.Metric`` with a similarity and a score for each pair."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})
        return evaluate.MetricInfo(description=__doc__ or "", citation="", inputs_description=_KWARGS, features=features)

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return correlations(predictions, references)


def correlations(similarities: Sequence[float], scores: Sequence[float]) -> dict[str, float]:
    """Both correlations in per cent with their standard errors, where they exist, and the number of pairs, ``n``."""
    count = len(scores)
    results: dict[str, float] = {}
    for name, values in (("spearman", (_ranks(similarities), _ranks(scores))), ("pearson", (np.array(similarities), np.array(scores)))):
        if count < 2 or any(np.ptp(value) == 0 for value in values):
            continue
        value = float(np.clip(np.corrcoef(*values)[0, 1], -1, 1))
        spread = 1 + value**2 / 2 if name == "spearman" else 1.0
        error = math.sqrt(spread / (count - 3)) * (1 - value**2) if count > 3 else 0.0
        results |= {name: 100 * value, f"{name}_se": 100 * error}
    return {**results, "n": count}


def _ranks(values: Sequence[float]) -> np.ndarray:
    """The rank of each value; equal values have the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
