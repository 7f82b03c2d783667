"""Evaluation: metrics that load without a network, and a reader that answers questions about long documents.

Below training, which uses the same inputs and metrics.
"""

from __future__ import annotations

from typing import Any

from hf_longattn.errors import LongAttentionError, nearest, needs_extra

METRICS = ("long_qa", "long_classification")


def load_metric(name: str = "long_qa", **kwargs: Any) -> Any:
    """Return an ``evaluate.Metric`` of this package, without a network.

    Args:
        name: "long_qa": exact match and F1 of extractive question answering, by document length; "long_classification": accuracy and
            macro F1 of classes, by document length.
        **kwargs: passed on to ``evaluate.Metric``.

    Raises:
        LongAttentionError: unknown name, or ``evaluate`` is not installed.
    """
    if name not in METRICS:
        raise LongAttentionError(f"unknown metric {name!r}; the metrics are {', '.join(METRICS)}.{nearest(name, METRICS)}")
    with needs_extra("train"):
        from hf_longattn.evaluation.metrics.long_classification import LongClassification
        from hf_longattn.evaluation.metrics.long_qa import LongQA

    return {"long_qa": LongQA, "long_classification": LongClassification}[name](**kwargs)
