"""Share of predicted texts that are as long as their references."""

from __future__ import annotations

import datasets
import evaluate

from hf_longattn.evaluation.summaries import means_in_percent

EXAMPLE = (["ab"], ["xy"], "same_length")
"""Predictions and references that agree, and the score that is then 100; the tests compute it."""


class SameLength(evaluate.Metric):
    """``evaluate.Metric`` with one predicted and one reference text each."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description=__doc__ or "", citation="", inputs_description="texts", features=features)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        """same_length in per cent, its standard error (for ten texts or more), and n."""
        rows = [[float(len(text) == len(expected))] for text, expected in zip(predictions, references, strict=True)]
        return means_in_percent(["same_length"], rows)
