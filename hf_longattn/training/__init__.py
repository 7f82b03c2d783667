"""Training on transformers' Trainer: question answering, classification, language models on long text, attention distillation.

Names are loaded when first used, so that importing one task does not import the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_longattn.errors import needs_extra

with needs_extra("train"):  # every module of this package needs them
    import accelerate  # noqa: F401
    import datasets  # noqa: F401

if TYPE_CHECKING:
    from .args import (
        ClassificationTrainingArguments,
        CLMTrainingArguments,
        DistillationArguments,
        LMTrainingArguments,
        MLMTrainingArguments,
        QATrainingArguments,
    )
    from .attention_distillation.distill import distill_attention
    from .classification import finetune_classification
    from .collators import DataCollatorWithGlobals
    from .data import load_labelled, load_text
    from .lengths import longest_input
    from .lm import finetune_lm
    from .qa import finetune_qa, load_qa_model
    from .qa_data import load_qa, save_qa

_HOME = {
    "CLMTrainingArguments": "args",
    "ClassificationTrainingArguments": "args",
    "DataCollatorWithGlobals": "collators",
    "DistillationArguments": "args",
    "LMTrainingArguments": "args",
    "MLMTrainingArguments": "args",
    "QATrainingArguments": "args",
    "distill_attention": "attention_distillation.distill",
    "finetune_classification": "classification",
    "finetune_lm": "lm",
    "finetune_qa": "qa",
    "load_labelled": "data",
    "load_qa": "qa_data",
    "load_qa_model": "qa",
    "load_text": "data",
    "longest_input": "lengths",
    "save_qa": "qa_data",
}

__all__ = [
    "CLMTrainingArguments",
    "ClassificationTrainingArguments",
    "DataCollatorWithGlobals",
    "DistillationArguments",
    "LMTrainingArguments",
    "MLMTrainingArguments",
    "QATrainingArguments",
    "distill_attention",
    "finetune_classification",
    "finetune_lm",
    "finetune_qa",
    "load_labelled",
    "load_qa",
    "load_qa_model",
    "load_text",
    "longest_input",
    "save_qa",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
