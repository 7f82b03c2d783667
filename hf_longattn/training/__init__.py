"""Training: the reference corpus, its tokenizer, pre-training and fine-tuning.

The names below are what other parts of the package use; they are loaded when first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .collator import DataCollatorWithGlobals
    from .corpus import Module, iter_modules
    from .docstring_qa import Rejections, build_docstring_qa
    from .lookup import build_lookup
    from .qa_collator import QACollator
    from .qa_data import load_qa, save_qa
    from .qa_features import QAFeature, QAFormat, encode_qa
    from .qa_finetune import describe_training, finetune_qa, load_qa_model, longest_input, save_qa_model
    from .qa_settings import QASettings
    from .qa_spans import Span, n_best_spans
    from .qa_trainer import QATrainer

_HOME = {
    "DataCollatorWithGlobals": "collator",
    "Module": "corpus",
    "iter_modules": "corpus",
    "Rejections": "docstring_qa",
    "build_docstring_qa": "docstring_qa",
    "build_lookup": "lookup",
    "QACollator": "qa_collator",
    "load_qa": "qa_data",
    "save_qa": "qa_data",
    "QAFeature": "qa_features",
    "QAFormat": "qa_features",
    "encode_qa": "qa_features",
    "describe_training": "qa_finetune",
    "finetune_qa": "qa_finetune",
    "load_qa_model": "qa_finetune",
    "longest_input": "qa_finetune",
    "save_qa_model": "qa_finetune",
    "QASettings": "qa_settings",
    "Span": "qa_spans",
    "n_best_spans": "qa_spans",
    "QATrainer": "qa_trainer",
}

__all__ = [
    "DataCollatorWithGlobals",
    "Module",
    "QACollator",
    "QAFeature",
    "QAFormat",
    "QASettings",
    "QATrainer",
    "Rejections",
    "Span",
    "build_docstring_qa",
    "build_lookup",
    "describe_training",
    "encode_qa",
    "finetune_qa",
    "iter_modules",
    "load_qa",
    "load_qa_model",
    "longest_input",
    "n_best_spans",
    "save_qa",
    "save_qa_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
