"""Training on transformers' Trainer, one module for each task of `longattn train`.

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
        ClassificationDataArguments,
        ClassificationTrainingArguments,
        CLMDataArguments,
        CLMModelArguments,
        DistillationModelArguments,
        DistillationTrainingArguments,
        LMDataArguments,
        LMModelArguments,
        MLMDataArguments,
        MLMModelArguments,
        ModelArguments,
        QADataArguments,
        QAModelArguments,
        QATrainingArguments,
        TextDataArguments,
        TextModelArguments,
        TextTrainingArguments,
    )
    from .attention_distillation.distill import distill_attention
    from .batching import DataCollatorWithPacking
    from .choice import ChoiceDataArguments, ChoiceTrainingArguments, finetune_choice
    from .classification import finetune_classification
    from .collators import DataCollatorWithGlobals
    from .data import load_labelled, load_text
    from .embed import EmbedDataArguments, EmbedModelArguments, EmbedTrainingArguments, finetune_embeddings
    from .lengths import longest_input
    from .lm import finetune_lm
    from .multitask import MultiTaskDataArguments, MultiTaskTrainingArguments, finetune_multitask, load_multitask_head
    from .qa import finetune_qa, load_qa_model
    from .qa_data import load_qa, save_qa
    from .seq2seq import Seq2SeqDataArguments, Seq2SeqLongTrainingArguments, finetune_seq2seq
    from .tokens import TokenDataArguments, TokenTrainingArguments, finetune_tokens

_HOME = {
    "CLMDataArguments": "args",
    "CLMModelArguments": "args",
    "ChoiceDataArguments": "choice",
    "ChoiceTrainingArguments": "choice",
    "ClassificationDataArguments": "args",
    "ClassificationTrainingArguments": "args",
    "DataCollatorWithGlobals": "collators",
    "DataCollatorWithPacking": "batching",
    "DistillationModelArguments": "args",
    "DistillationTrainingArguments": "args",
    "EmbedDataArguments": "embed",
    "EmbedModelArguments": "embed",
    "EmbedTrainingArguments": "embed",
    "LMDataArguments": "args",
    "MLMDataArguments": "args",
    "LMModelArguments": "args",
    "MLMModelArguments": "args",
    "ModelArguments": "args",
    "MultiTaskDataArguments": "multitask",
    "MultiTaskTrainingArguments": "multitask",
    "QADataArguments": "args",
    "QAModelArguments": "args",
    "QATrainingArguments": "args",
    "Seq2SeqDataArguments": "seq2seq",
    "Seq2SeqLongTrainingArguments": "seq2seq",
    "TextDataArguments": "args",
    "TextModelArguments": "args",
    "TextTrainingArguments": "args",
    "TokenDataArguments": "tokens",
    "TokenTrainingArguments": "tokens",
    "distill_attention": "attention_distillation.distill",
    "finetune_choice": "choice",
    "finetune_classification": "classification",
    "finetune_embeddings": "embed",
    "finetune_lm": "lm",
    "finetune_multitask": "multitask",
    "finetune_qa": "qa",
    "finetune_seq2seq": "seq2seq",
    "finetune_tokens": "tokens",
    "load_labelled": "data",
    "load_multitask_head": "multitask",
    "load_qa": "qa_data",
    "load_qa_model": "qa",
    "load_text": "data",
    "longest_input": "lengths",
    "save_qa": "qa_data",
}

__all__ = [
    "CLMDataArguments",
    "CLMModelArguments",
    "ChoiceDataArguments",
    "ChoiceTrainingArguments",
    "ClassificationDataArguments",
    "ClassificationTrainingArguments",
    "DataCollatorWithGlobals",
    "DataCollatorWithPacking",
    "DistillationModelArguments",
    "DistillationTrainingArguments",
    "EmbedDataArguments",
    "EmbedModelArguments",
    "EmbedTrainingArguments",
    "LMDataArguments",
    "MLMDataArguments",
    "LMModelArguments",
    "MLMModelArguments",
    "ModelArguments",
    "MultiTaskDataArguments",
    "MultiTaskTrainingArguments",
    "QADataArguments",
    "QAModelArguments",
    "QATrainingArguments",
    "Seq2SeqDataArguments",
    "Seq2SeqLongTrainingArguments",
    "TextDataArguments",
    "TextModelArguments",
    "TextTrainingArguments",
    "TokenDataArguments",
    "TokenTrainingArguments",
    "distill_attention",
    "finetune_choice",
    "finetune_classification",
    "finetune_embeddings",
    "finetune_lm",
    "finetune_multitask",
    "finetune_qa",
    "finetune_seq2seq",
    "finetune_tokens",
    "load_labelled",
    "load_multitask_head",
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
