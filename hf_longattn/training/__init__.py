"""Training on transformers' Trainer; `tasks/` has a module for each task of `longattn train`.

Names are loaded when first used, so that importing one task does not import the others.
"""

# ruff: noqa: F401 (names for editors and type checkers)
from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import public_names

if TYPE_CHECKING:
    from ..data.batching import DataCollatorWithGlobals, DataCollatorWithPacking
    from ..data.qa_schemas import load_qa
    from ..data.rows import read_rows, read_texts
    from ..data.tokenization import longest_input
    from .arguments import DataArguments, LongTrainingArguments, ModelArguments
    from .run import begin, finish, run_task
    from .tasks.multitask import load_multitask_head
    from .tasks.qa import load_qa_model
    from .trainer import LongTrainer

__getattr__, __all__ = public_names(__name__)
