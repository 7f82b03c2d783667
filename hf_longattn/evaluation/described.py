"""The base class of this package's metrics."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import datasets
import evaluate


class DescribedMetric(evaluate.Metric, ABC):
    """An ``evaluate.Metric`` that its module's docstring describes; its own says what it takes and returns.

    A file of a metric may import this class: ``evaluate.load`` takes the first class that is not abstract.
    """

    items: ClassVar[tuple[Any, Any]]
    """A prediction and a reference: the name of a type of ``datasets.Value``, or a list or dict of such names."""
    citation = ""

    def _info(self) -> evaluate.MetricInfo:
        predictions, references = map(feature, self.items)
        return evaluate.MetricInfo(
            description=sys.modules[self.__module__].__doc__ or "", citation=self.citation, inputs_description=self.__doc__ or "",
            features=datasets.Features({"predictions": predictions, "references": references}),
        )  # fmt: skip

    @abstractmethod
    def _compute(self, *args: Any, **kwargs: Any) -> dict[str, Any]: ...


def feature(item: Any) -> Any:
    """The ``datasets`` feature of one of :attr:`DescribedMetric.items`."""
    if isinstance(item, dict):
        return {name: feature(part) for name, part in item.items()}
    return datasets.List(feature(item[0])) if isinstance(item, list) else datasets.Value(item)
