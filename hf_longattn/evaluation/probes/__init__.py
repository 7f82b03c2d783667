"""Probes: small synthetic tasks that say what a mechanism can do, apart from any checkpoint."""

from .mqar import Mqar
from .recall import RecallResult, RecallSetting, measure_recall, recall_markdown
from .recall_plot import plot_recall

__all__ = ["Mqar", "RecallResult", "RecallSetting", "measure_recall", "plot_recall", "recall_markdown"]
