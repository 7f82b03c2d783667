"""Training on transformers' Trainer, one module for each task of `longattn train`.

Names are loaded when first used, so that importing one task does not import the others.
"""

# ruff: noqa: F401 (names for editors and type checkers)
from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import needs_extra
from ..lazy import public_names

with needs_extra("train"):  # every module of this package needs them
    import accelerate
    import datasets

if TYPE_CHECKING:
    from ..data.batching import DataCollatorWithGlobals, DataCollatorWithPacking
    from ..data.lengths import longest_input
    from ..data.qa_schemas import load_qa, save_qa
    from ..data.sources import load_labelled, load_text
    from .args import ModelArguments
    from .attention_distillation.args import DistillationModelArguments, DistillationTrainingArguments
    from .attention_distillation.distill import distill_attention
    from .choice import ChoiceDataArguments, ChoiceTrainingArguments, finetune_choice
    from .classification import ClassificationDataArguments, ClassificationTrainingArguments, finetune_classification
    from .embed import EmbedDataArguments, EmbedModelArguments, EmbedTrainingArguments, finetune_embeddings
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
    from .seq2seq import Seq2SeqDataArguments, Seq2SeqLongTrainingArguments, finetune_seq2seq
    from .tokens import TokenDataArguments, TokenTrainingArguments, finetune_tokens

__getattr__, __all__ = public_names(
    __name__,
    {
        ".data.batching": ("DataCollatorWithGlobals", "DataCollatorWithPacking"),
        ".data.lengths": ("longest_input",),
        ".data.qa_schemas": ("load_qa", "save_qa"),
        ".data.sources": ("load_labelled", "load_text"),
        "args": ("ModelArguments",),
        "attention_distillation.args": ("DistillationModelArguments", "DistillationTrainingArguments"),
        "attention_distillation.distill": ("distill_attention",),
        "choice": ("ChoiceDataArguments", "ChoiceTrainingArguments", "finetune_choice"),
        "classification": ("ClassificationDataArguments", "ClassificationTrainingArguments", "finetune_classification"),
        "embed": ("EmbedDataArguments", "EmbedModelArguments", "EmbedTrainingArguments", "finetune_embeddings"),
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
        "seq2seq": ("Seq2SeqDataArguments", "Seq2SeqLongTrainingArguments", "finetune_seq2seq"),
        "tokens": ("TokenDataArguments", "TokenTrainingArguments", "finetune_tokens"),
    },
)
