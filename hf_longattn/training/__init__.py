"""Fine-tuning of long models: data, collators, trainers.

The names below are what other parts of the package use; they are loaded when first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_longattn.errors import needs_extra

if TYPE_CHECKING:
    from .collator import DataCollatorWithGlobals
    from .qa_collator import QACollator
    from .qa_data import load_qa, save_qa
    from .qa_features import QAFeature, QAFormat, encode_qa
    from .qa_spans import Span, n_best_spans

_HOME = {
    "DataCollatorWithGlobals": "collator",
    "QACollator": "qa_collator",
    "load_qa": "qa_data",
    "save_qa": "qa_data",
    "QAFeature": "qa_features",
    "QAFormat": "qa_features",
    "encode_qa": "qa_features",
    "Span": "qa_spans",
    "n_best_spans": "qa_spans",
}

__all__ = [
    "DataCollatorWithGlobals",
    "QACollator",
    "QAFeature",
    "QAFormat",
    "Span",
    "encode_qa",
    "load_qa",
    "n_best_spans",
    "save_qa",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs_extra("train"):
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
