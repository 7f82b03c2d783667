"""Fine-tune for multiple choice over long documents.

Each choice is read with the document (RACE, QuALITY, SWAG), or all candidates together with all documents (WikiHop;
:mod:`hf_longattn.training.candidate_scores`).
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForMultipleChoice, EvalPrediction
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from hf_longattn.data.batching import ChoiceCollator
from hf_longattn.data.choices import CandidateCollator, is_qangaroo, read_choices, read_joint, to_candidates, to_choices
from hf_longattn.data.lengths import input_length
from hf_longattn.data.sources import each_part, read_source, train_test_split
from hf_longattn.evaluation import load_metric
from hf_longattn.modeling.attach.token_globals import carry_question
from hf_longattn.tasks import Task
from hf_longattn.training.args import LabelledDataArguments, ModelArguments, argument, batch_size_argument, check_choices
from hf_longattn.training.candidate_scores import CandidateTrainer, accuracy_by_length, load_candidate_model, write_choices
from hf_longattn.training.loading import load_head, load_start
from hf_longattn.training.results import held_out_in_words, score_in_words, sources_in_words, steps_of
from hf_longattn.training.trainer import LongTrainer
from hf_longattn.training.training_args import LongTrainingArguments
from hf_longattn.training.training_loop import prepare_run, save_run, train

CANDIDATE_FORMS = ("auto", "separate", "joint")


@dataclass
class ChoiceDataArguments(LabelledDataArguments):
    """Questions with a few answers to choose from."""

    data: list[str] = argument(
        [], "Files, folders or names on the Hub, one or several: "
        "a .jsonl, .json or .parquet file, a folder written by datasets, the name of a dataset on the Hub; with the "
        "columns context (or article, ctx), question, choices (or options, endings, or ending0, ending1 …) and label (or answer, "
        "answerKey): a number from 0, a letter from A, the text of the choice, or its label (ARC), the same in all rows; or with WikiHop's "
        "query, candidates, supports and answer."
    )  # fmt: skip
    context_column: str = argument("", "The column that holds the document, if it has none of these names.")
    question_column: str = argument("", "The column that holds the question, if it has none of these names.")
    choices_column: list[str] = argument([], "The column that holds the choices, or several that hold one each.")
    label_column: str = argument("", "The column that says which choice is right, if it has none of these names.")
    candidates: str = argument(
        "auto", "How choices are read: separate (each with the document), joint (all with all documents, each scored at its marker and "
        "averaged over the inputs that the documents need, as Longformer does on WikiHop), or auto: joint for WikiHop's columns."
    )  # fmt: skip
    long_documents: str = argument("windows", "What joint does with documents too long for it: windows (further inputs) or truncate.")

    @property
    def named_columns(self) -> dict[str, Any]:
        """The columns that were named, by what they hold."""
        return {role: getattr(self, f"{role}_column") for role in ("context", "question", "choices", "label")}

    def check(self) -> None:
        super().check()
        check_choices(self, candidates=CANDIDATE_FORMS, long_documents=("windows", "truncate"))


@dataclass
class ChoiceTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of multiple choice."""

    per_device_train_batch_size: int = batch_size_argument(1, "Questions per forward pass and process; each choice is a row.")
    per_device_eval_batch_size: int = argument(1, "Questions per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(16, "Forward passes per optimiser step (RoBERTa on RACE: 16 questions a step).")
    learning_rate: float = argument(1e-5, "Peak learning rate (RoBERTa on RACE, table 10: 1e-5).")


CHOICE = (ModelArguments, ChoiceDataArguments, ChoiceTrainingArguments)


def finetune_choice(model_args: ModelArguments, data_args: ChoiceDataArguments, training_args: ChoiceTrainingArguments) -> dict[str, Any]:
    """Train, and write the model to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, accuracy before and after, Trainer's history.
    """
    run = prepare_run(model_args, data_args, training_args)
    joint = data_args.candidates == "joint"
    if data_args.candidates == "auto":
        joint = not any(data_args.named_columns.values()) and is_qangaroo(read_source(data_args.data[0], data_args.split))
    known = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES if joint else MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES
    _, tokenizer = load_start(model_args.model, "candidates" if joint else "multiple choice", known)
    data, held = train_test_split(
        data_args, partial(read_joint if joint else read_choices, named=data_args.named_columns), training_args.seed
    )
    if joint:
        model, tokenizer = load_candidate_model(model_args.model, tokenizer, complete=training_args.only_scores)
        encode = partial(to_candidates, truncate=data_args.long_documents == "truncate")
    else:
        model = load_head(AutoModelForMultipleChoice, model_args.model, tokenizer, complete=training_args.only_scores)
        if not training_args.only_scores:
            carry_question(model, tokenizer)
        encode = partial(to_choices, question_first=getattr(model.config, "question_separator_id", None) is not None)
    length = input_length(model, tokenizer, data_args.max_length)
    rows, held_out = each_part(lambda part: encode(part, tokenizer, length), data, held)
    trainer = (CandidateTrainer if joint else LongTrainer)(
        model,
        training_args,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        data_collator=CandidateCollator(tokenizer) if joint else ChoiceCollator(tokenizer),
        compute_metrics=_accuracy,
    )
    before = train(trainer, run, lambda: _scores(trainer, held_out)[1])
    chosen, after = _scores(trainer, held_out)
    if joint and trainer.is_world_process_zero():
        training_args.folder.mkdir(parents=True, exist_ok=True)
        write_choices(training_args.folder, held, chosen)
    log = {"input_length": length, "questions": len(data), "joint": joint, "held_out": {"before": before, "after": after}}
    return save_run(trainer, run, log, describe_choice)


def _scores(trainer: LongTrainer, data: Dataset) -> tuple[list[int], dict[str, Any]]:
    """The chosen numbers, and their accuracy by length."""
    chosen = _chosen(trainer.predict(data).predictions).tolist()
    return chosen, accuracy_by_length(chosen, data) if trainer.is_world_process_zero() else {}


def _accuracy(evaluation: EvalPrediction) -> dict[str, float]:
    references = [{"label": label, "length": -1} for label in evaluation.label_ids.tolist()]
    scores = load_metric("long_classification").compute(predictions=_chosen(evaluation.predictions).tolist(), references=references)
    return {"accuracy": scores["accuracy"]}


def _chosen(predictions: Any) -> np.ndarray:
    """Numbers of choices from scores (Q, C). Numbers (Q,) are returned unchanged."""
    numbers = np.asarray(predictions)
    return numbers.argmax(-1) if numbers.ndim == 2 else numbers


def describe_choice(log: dict[str, Any]) -> str:
    """The text of the model card about a run."""
    questions, sources = f"{log['questions']:,} questions", sources_in_words(log["settings"])
    inputs = f"inputs of up to {log['input_length']:,} tokens"
    return f"{steps_of(log)} with `longattn train choice` on {questions} of {sources}, {inputs}. {choice_result(log)}."


def choice_result(log: dict[str, Any]) -> str:
    """The result of a run for the terminal."""
    return held_out_in_words(log, lambda scores: score_in_words(scores, "accuracy"), "question")


TASK = Task(arguments=CHOICE, train=finetune_choice, result=choice_result, evaluation="Score the choices of answers about long documents.")
