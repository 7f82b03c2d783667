"""Metrics, one ``evaluate.Metric`` in each file. A file also loads by its path with ``evaluate.load``."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import datasets
import evaluate


class DescribedMetric(evaluate.Metric, ABC):
    """An ``evaluate.Metric`` described by its module's docstring. The class docstring documents inputs and results.

    A metric's file may import this class: ``evaluate.load`` takes the first class that is not abstract.
    """

    citation = ""
    items: ClassVar[tuple[Any, Any]]
    """Types of a prediction and of a reference: type names of ``datasets.Value``, or lists or dicts of type names."""

    def _info(self) -> evaluate.MetricInfo:
        predictions, references = map(feature, self.items)
        features = datasets.Features({"predictions": predictions, "references": references})
        about, inputs = (inspect.getdoc(one) or "" for one in (inspect.getmodule(type(self)), type(self)))
        return evaluate.MetricInfo(
            description=about, citation=self.citation, inputs_description=inputs, features=features
        )

    @abstractmethod
    def _compute(self, *args: Any, **kwargs: Any) -> dict[str, Any]: ...


def feature(item: Any) -> Any:
    """The ``datasets`` feature of one of :attr:`DescribedMetric.items`."""
    if isinstance(item, dict):
        return {name: feature(part) for name, part in item.items()}
    return datasets.List(feature(item[0])) if isinstance(item, list) else datasets.Value(item)
