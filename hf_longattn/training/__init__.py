"""Training on transformers' Trainer, one module for each task of `longattn train`.

Names are loaded when first used, so that importing one task does not import the others.
"""

# ruff: noqa: F401 (names for editors and type checkers)
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_longattn.errors import needs_extra

with needs_extra("train"):  # every module of this package needs them
    import accelerate
    import datasets

if TYPE_CHECKING:
    from .args import ModelArguments
    from .attention_distillation.args import DistillationModelArguments, DistillationTrainingArguments
    from .attention_distillation.distill import distill_attention
    from .batching import DataCollatorWithPacking
    from .choice import ChoiceDataArguments, ChoiceTrainingArguments, finetune_choice
    from .classification import ClassificationDataArguments, ClassificationTrainingArguments, finetune_classification
    from .collators import DataCollatorWithGlobals
    from .data import load_labelled, load_text
    from .embed import EmbedDataArguments, EmbedModelArguments, EmbedTrainingArguments, finetune_embeddings
    from .lengths import longest_input
    from .lm import (
        CLMDataArguments,
        CLMModelArguments,
        LMDataArguments,
        LMModelArguments,
        MLMDataArguments,
        MLMModelArguments,
        TextDataArguments,
        TextModelArguments,
        TextTrainingArguments,
        finetune_lm,
    )
    from .multitask import MultiTaskDataArguments, MultiTaskTrainingArguments, finetune_multitask, load_multitask_head
    from .qa import QADataArguments, QAModelArguments, QATrainingArguments, finetune_qa, load_qa_model
    from .qa_data import load_qa, save_qa
    from .seq2seq import Seq2SeqDataArguments, Seq2SeqLongTrainingArguments, finetune_seq2seq
    from .tokens import TokenDataArguments, TokenTrainingArguments, finetune_tokens

_NAMES = {
    "args": ("ModelArguments",),
    "attention_distillation.args": ("DistillationModelArguments", "DistillationTrainingArguments"),
    "attention_distillation.distill": ("distill_attention",),
    "batching": ("DataCollatorWithPacking",),
    "choice": ("ChoiceDataArguments", "ChoiceTrainingArguments", "finetune_choice"),
    "classification": ("ClassificationDataArguments", "ClassificationTrainingArguments", "finetune_classification"),
    "collators": ("DataCollatorWithGlobals",),
    "data": ("load_labelled", "load_text"),
    "embed": ("EmbedDataArguments", "EmbedModelArguments", "EmbedTrainingArguments", "finetune_embeddings"),
    "lengths": ("longest_input",),
    "lm": (
        "CLMDataArguments",
        "CLMModelArguments",
        "LMDataArguments",
        "LMModelArguments",
        "MLMDataArguments",
        "MLMModelArguments",
        "TextDataArguments",
        "TextModelArguments",
        "TextTrainingArguments",
        "finetune_lm",
    ),
    "multitask": ("MultiTaskDataArguments", "MultiTaskTrainingArguments", "finetune_multitask", "load_multitask_head"),
    "qa": ("QADataArguments", "QAModelArguments", "QATrainingArguments", "finetune_qa", "load_qa_model"),
    "qa_data": ("load_qa", "save_qa"),
    "seq2seq": ("Seq2SeqDataArguments", "Seq2SeqLongTrainingArguments", "finetune_seq2seq"),
    "tokens": ("TokenDataArguments", "TokenTrainingArguments", "finetune_tokens"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
