"""Fine-tune to predict a number for each document."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModelForSequenceClassification

from hf_longattn.data.batching import DataCollatorWithGlobals
from hf_longattn.data.rows import each_part, read_rows
from hf_longattn.data.tokenization import input_length
from hf_longattn.loading import load_config, load_model, load_padding_tokenizer
from hf_longattn.training.arguments import DataArguments, LongTrainingArguments, ModelArguments
from hf_longattn.training.run import begin, finish, run_task
from hf_longattn.training.trainer import LongTrainer


@dataclass
class ScoreDataArguments(DataArguments):
    """Documents and their numbers."""

    roles: ClassVar[dict[str, tuple[str, ...]]] = {"text": ("text",), "number": ("number", "score")}


ARGUMENTS = (ModelArguments, ScoreDataArguments, LongTrainingArguments)


def main(
    model_args: ModelArguments, data_args: ScoreDataArguments, training_args: LongTrainingArguments
) -> dict[str, Any]:
    """Train, and write the model to ``training_args.output_dir``. Returns the log."""
    begin(model_args, data_args, training_args)
    tokenizer = load_padding_tokenizer(model_args.model, load_config(model_args.model))
    regression: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    loader = AutoModelForSequenceClassification
    model = load_model(loader, model_args.model, complete=not training_args.do_train, **regression)
    length = input_length(model, tokenizer, data_args.max_length)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        return {**tokenizer(row["text"], truncation=True, max_length=length), "labels": row["number"]}

    parts = read_rows(data_args, training_args.seed)
    train, held_out = each_part(lambda part: part.map(encode, remove_columns=part.column_names), *parts)
    trainer = LongTrainer(model, training_args, DataCollatorWithGlobals(tokenizer), train, held_out, tokenizer)
    return finish(trainer, model_args, data_args, input_length=length)


if __name__ == "__main__":
    sys.exit(run_task(sys.modules["__main__"], sys.argv[1:]))
