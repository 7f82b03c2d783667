"""Fine-tune to predict a number for each document."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from hf_longattn.data.lengths import input_length
from hf_longattn.data.sources import DataError, as_number, check_column, read_source, train_test_split
from hf_longattn.training.args import LabelledDataArguments, ModelArguments, argument
from hf_longattn.training.loading import load_head, load_start
from hf_longattn.training.old_trainer import LongTrainer
from hf_longattn.training.results import compared_losses, loss_in_words, loss_name, plain_scores, steps_of
from hf_longattn.training.task import Task
from hf_longattn.training.training_args import LongTrainingArguments
from hf_longattn.training.training_loop import prepare_run, save_run, train


@dataclass
class ScoreDataArguments(LabelledDataArguments):
    """Documents and their numbers."""

    hub_task: ClassVar[str] = "text-classification"

    score_column: str = argument("score", "The column that holds the number.")


def read_scores(source: str, split: str, column: str) -> Dataset:
    """Documents and their numbers, in the columns text and score.

    Raises:
        DataError: a missing column, no rows, or a row without a text and a number.
    """
    data = read_source(source, split)
    check_column(data, "text", source, "the name text", text=True)
    check_column(data, column, source, "--score-column")

    def convert(row: dict[str, Any], number: int) -> dict[str, Any]:
        score = as_number(row[column])
        if not row["text"] or score is None:
            raise DataError(f"Row {number + 1} of {source} must have a text and a number, not {row['text']!r} and {row[column]!r}.")
        return {"text": row["text"], "score": score}

    return data.map(convert, with_indices=True, remove_columns=data.column_names)


def finetune_score(model_args: ModelArguments, data_args: ScoreDataArguments, training_args: LongTrainingArguments) -> dict[str, Any]:
    """Train, and write the model to ``training_args.output_dir``."""
    run = prepare_run(model_args, data_args, training_args)
    _, tokenizer = load_start(model_args.model, "a number for each document", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    parts = train_test_split(data_args, partial(read_scores, column=data_args.score_column), training_args.seed)
    regression = {"num_labels": 1, "problem_type": "regression"}
    complete = training_args.only_scores
    model = load_head(AutoModelForSequenceClassification, model_args.model, tokenizer, complete=complete, **regression)
    length = input_length(model, tokenizer, data_args.max_length)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        inputs = tokenizer(row["text"], truncation=True, max_length=length)
        return {**inputs, "labels": row["score"]}

    rows, held_out = (part.map(encode, remove_columns=part.column_names) for part in parts)
    trainer = LongTrainer(
        model,
        training_args,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    before = train(trainer, run, lambda: plain_scores(trainer.evaluate()))
    log = {"held_out_loss": compared_losses(before, plain_scores(trainer.evaluate()))}
    return save_run(trainer, run, log, lambda log: f"{steps_of(log)} with `longattn train score`. {score_result(log)}.")


def score_result(log: dict[str, Any]) -> str:
    """What is printed at the end of a run."""
    return f"{loss_name(log, 'squared error')} {loss_in_words(log['held_out_loss'])}"


TASK = Task(
    arguments=(ModelArguments, ScoreDataArguments, LongTrainingArguments),
    train=finetune_score,
    result=score_result,
    evaluation="Score the numbers of documents.",
)
