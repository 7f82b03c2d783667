"""Metrics that load without a network, a question-answering reader for long documents, and document vectors.

Training uses the same inputs and metrics.
"""

from __future__ import annotations

from typing import Any

from hf_longattn.errors import LongAttentionError, OptionError, nearest
from hf_longattn.names import module_names


def load_metric(name: str) -> Any:
    """Return an ``evaluate.Metric`` of this package, without a network and without files.

    Args:
        name: "long_qa": exact match and F1 of extractive question answering, by document length;
            "long_classification": accuracy and macro F1 of classes, by document length; "entities": precision, recall
            and F1 of tagged words; "rouge": ROUGE of summaries; "wer": word and character error rates of transcripts.

    Raises:
        LongAttentionError: unknown name.
        OptionError: the module of that name has no metric.
    """
    metrics = module_names("evaluation.metrics")
    if name not in metrics:
        raise LongAttentionError(
            f"Unknown metric {name!r}; the metrics are {', '.join(metrics)}.{nearest(name, metrics)}"
        )
    from evaluate.loading import import_main_class

    metric = import_main_class(f"{__name__}.metrics.{name}")
    if metric is None:
        raise OptionError(
            f"The metric {name!r} ({__name__}.metrics.{name}) defines no class that derives from evaluate.Metric and "
            "has all that its base asks for; write one in that file, as docs/extending.md shows."
        )
    return metric(keep_in_memory=True)
