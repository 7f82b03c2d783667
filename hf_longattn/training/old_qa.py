"""Questions for the task multitask, until it has moved."""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from datasets import Dataset

from hf_longattn.data.qa_schemas import load_qa
from hf_longattn.data.sources import train_test_split
from hf_longattn.training.args import LabelledDataArguments, argument


@dataclass
class QADataArguments(LabelledDataArguments):
    """Questions about documents, and their encoding."""

    shape: ClassVar[str] = "a SQuAD-shaped file"
    training_only: ClassVar[tuple[str, ...]] = ("packing",)

    data: list[str] = argument(
        [], "Files, folders or names on the Hub, one or several: "
        "a .json, .jsonl, .csv, .tsv or .parquet file, a folder written by datasets, a name on the Hub "
        "(NAME:SUBSET); in the schema of SQuAD, MRQA or HotpotQA, or with question, context and answer."
    )  # fmt: skip
    validation: str = argument(
        "", "Questions to answer before, during (--eval-strategy) and after training; they also tune the no-answer threshold; "
        "default: a tenth of the questions of every source of --data, chosen by --seed; their documents may have others in training."
    )  # fmt: skip
    skip_bad_rows: bool = argument(False, "Leave out rows that cannot be used, such as answers that are not in their document.")
    max_length: int | None = argument(None, "Tokens of the longest input; default: the model's maximum.")
    stride: int | None = argument(
        None, "Tokens shared by consecutive windows of a document that is longer than --max-length; default: 128 (BERT, run_qa), a quarter "
        "of --max-length at most."
    )  # fmt: skip
    packing: bool | None = argument(
        None, "Pack the documents of a batch into one row without padding; default: yes where the model keeps them apart (Long models)."
    )

    def shared_tokens(self, length: int) -> int:
        """The tokens that windows of ``length`` share: --stride or its default."""
        return min(128, length // 4) if self.stride is None else self.stride


def read_questions(args: QADataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Training and evaluation questions with all their documents; see :func:`train_test_split`.

    Raises:
        DataError: as :func:`load_qa`.
        OptionError: too few questions to hold some back.
    """
    read = partial(load_qa, skip_bad_rows=args.skip_bad_rows)
    return train_test_split(args, read, seed, unit="id", classes="kind")
