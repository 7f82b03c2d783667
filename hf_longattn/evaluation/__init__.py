"""Metrics, a question-answering reader for long documents, and document vectors.

Training makes its inputs and scores with the same code.
"""

from __future__ import annotations

from typing import Any

from ..errors import LongAttentionError, nearest
from ..names import load_module, module_names


def load_metric(name: str) -> Any:
    """The metric with a name: ``load_metric("wer").compute(predictions=…, references=…)`` returns scores by name.

    Args:
        name: "long_qa": exact match and F1 of extractive question answering, by document length;
            "long_classification": accuracy and macro F1 of classes, by document length; "entities": precision, recall
            and F1 of tagged words; "rouge": ROUGE of summaries; "wer": word and character error rates of transcripts.

    Raises:
        LongAttentionError: unknown name.
    """
    metrics = module_names("evaluation.metrics")
    if name not in metrics:
        raise LongAttentionError(
            f"Unknown metric {name!r}; the metrics are {', '.join(metrics)}.{nearest(name, metrics)}"
        )
    return load_module("evaluation.metrics", name)
