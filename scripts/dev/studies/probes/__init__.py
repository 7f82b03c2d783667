"""Probes: small synthetic tasks that say what a mechanism can do, apart from any checkpoint."""

from hf_longattn.evaluation.probes import Compositional, Copy, Forgetting, Induction, ListOps, Mqar

from .learned import MECHANISMS, TASKS, learned_markdown, plot_learned
from .performer_error import measure_performer_error, performer_error_markdown, plot_performer_error
from .recall import RecallResult, RecallSetting, TrainedTask, measure_recall, measure_speeds, recall_markdown
from .recall_plot import plot_recall

__all__ = [
    "MECHANISMS",
    "TASKS",
    "learned_markdown",
    "plot_learned",
    "Compositional",
    "Copy",
    "Forgetting",
    "Induction",
    "ListOps",
    "Mqar",
    "RecallResult",
    "RecallSetting",
    "TrainedTask",
    "measure_performer_error",
    "measure_recall",
    "measure_speeds",
    "performer_error_markdown",
    "plot_performer_error",
    "plot_recall",
    "recall_markdown",
]
