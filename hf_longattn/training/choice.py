"""Fine-tune a model, short or converted, for multiple choice over long documents: each choice is read with the document (RACE, QuALITY,
SWAG), or all candidates together with all documents (WikiHop; :mod:`hf_longattn.training.candidates`)."""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from transformers import AutoModelForMultipleChoice, DataCollatorForMultipleChoice, EvalPrediction, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from hf_longattn.data.batching import WithoutLengths
from hf_longattn.data.lengths import input_length
from hf_longattn.data.sources import DataError, held_back, read_source
from hf_longattn.errors import OptionError
from hf_longattn.modeling.token_globals import carry_question
from hf_longattn.training.args import LabelledDataArguments, LongTrainingArguments, ModelArguments, argument
from hf_longattn.training.candidates import (
    CandidateCollator,
    CandidateTrainer,
    accuracy_by_length,
    from_choices,
    is_qangaroo,
    load_candidate_model,
    read_qangaroo,
    to_candidates,
    write_choices,
)
from hf_longattn.training.loading import load_head, load_start
from hf_longattn.training.results import steps_of
from hf_longattn.training.trainer import TimedTrainer
from hf_longattn.training.training_loop import begin, finish, train

COLUMNS = {
    "context": ("context", "article", "sent1"),
    "question": ("question", "sent2"),
    "choices": ("choices", "options"),
    "label": ("label", "answer"),
}
"""Names of columns that are taken without being told: plain data, RACE and SWAG."""
CANDIDATE_FORMS = ("auto", "separate", "joint")


@dataclass
class ChoiceDataArguments(LabelledDataArguments):
    """Questions with a few answers to choose from."""

    hub_task: ClassVar[str] = "multiple-choice"

    data: list[str] = argument(
        [], "One or several of: a .jsonl, .json or .parquet file, a folder written by datasets, the name of a dataset on the Hub; with the "
        "columns context (or article), question, choices (or options, or ending0, ending1 …) and label (or answer): a number from 0, a "
        "letter from A, or the text of the choice; or with WikiHop's query, candidates, supports and answer."
    )  # fmt: skip
    candidates: str = argument(
        "auto", "How choices are read: separate (each with the document), joint (all with all documents, each scored at its marker and "
        "averaged over the inputs that the documents need, as Longformer does on WikiHop), or auto: joint for WikiHop's columns."
    )  # fmt: skip
    long_documents: str = argument(
        "windows", "What joint does with documents that do not fit beside the candidates: windows (further inputs), or truncate."
    )

    def check(self) -> None:
        super().check()
        for name, known in (("candidates", CANDIDATE_FORMS), ("long_documents", ("windows", "truncate"))):
            if getattr(self, name) not in known:
                raise OptionError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")


@dataclass
class ChoiceTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of multiple choice."""

    per_device_train_batch_size: int = argument(
        1, "Questions per forward pass and process; each choice is a row.", ["--batch_size", "--batch-size"]
    )
    per_device_eval_batch_size: int = argument(1, "Questions per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(16, "Forward passes per optimiser step (RoBERTa on RACE: 16 questions a step).")
    learning_rate: float = argument(1e-5, "Highest learning rate (RoBERTa on RACE, table 10: 1e-5).")


CHOICE = (ModelArguments, ChoiceDataArguments, ChoiceTrainingArguments)


def finetune_choice(model_args: ModelArguments, data_args: ChoiceDataArguments, training_args: ChoiceTrainingArguments) -> dict[str, Any]:
    """Train, and write the model to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, accuracy before and after, Trainer's history.
    """
    run = begin(model_args, data_args, training_args)
    joint = data_args.candidates == "joint"
    if data_args.candidates == "auto":
        joint = is_qangaroo(read_source(data_args.data[0], data_args.split))
    known = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES if joint else MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES
    _, tokenizer = load_start(model_args.model, "candidates" if joint else "multiple choice", known)
    data, held = held_back(data_args, read_joint if joint else read_choices, training_args.seed)
    if joint:
        model, tokenizer = load_candidate_model(model_args.model, tokenizer)
    else:
        model = load_head(AutoModelForMultipleChoice, model_args.model, tokenizer)
        carry_question(model, tokenizer)
    length = input_length(model, tokenizer, data_args.max_length)
    encode = partial(to_candidates, truncate=data_args.long_documents == "truncate") if joint else to_choices
    rows, held_out = (encode(part, tokenizer, length) for part in (data, held))
    training_args.remove_unused_columns = False
    trainer = (CandidateTrainer if joint else TimedTrainer)(
        model,
        training_args,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        data_collator=CandidateCollator(tokenizer) if joint else ChoiceCollator(tokenizer),
        compute_metrics=_accuracy,
        max_minutes=training_args.max_minutes,
    )
    before = train(trainer, run, lambda: _scores(trainer, held_out)[1])
    found, after = _scores(trainer, held_out)
    if joint and trainer.is_world_process_zero():
        training_args.folder.mkdir(parents=True, exist_ok=True)
        write_choices(training_args.folder, held, found)
    log = {"input_length": length, "questions": len(data), "joint": joint, "held_out": {"before": before, "after": after}}
    return finish(trainer, run, log, describe_choice)


class ChoiceCollator(WithoutLengths, DataCollatorForMultipleChoice):
    """transformers' collator, without lengths."""


def read_joint(source: str, split: str) -> Dataset:
    """WikiHop, or any data of :func:`read_choices`, in the columns of :func:`read_qangaroo`."""
    if is_qangaroo(read_source(source, split)):
        return read_qangaroo(source, split)
    return from_choices(read_choices(source, split, varied=True))


def read_choices(source: str, split: str, *, varied: bool = False) -> Dataset:
    """Questions with the columns context, question, choices and label, a number.

    Raises:
        DataError: a missing column, a label that is none of the choices, or (unless ``varied``) different numbers of choices.
    """
    data = read_source(source, split)
    endings = sorted(name for name in data.column_names if name.startswith("ending") and name[6:].isdigit())
    names = {role: next((name for name in some if name in data.column_names), None) for role, some in COLUMNS.items()}
    missing = [role for role in ("choices", "label") if names[role] is None and not (role == "choices" and endings)]
    if missing or (names["context"] is None and names["question"] is None):
        what = missing[0] if missing else "context"
        raise DataError(f"{source} has no column for {what} ({', '.join(COLUMNS[what])}); its columns are {', '.join(data.column_names)}")
    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for number, row in enumerate(data, start=1):
        choices = [row[name] for name in endings] if endings else row[str(names["choices"])]
        choices = choices["text"] if isinstance(choices, dict) else choices
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
            raise DataError(f"row {number} of {source}: the choices must be at least two texts, not {choices!r}")
        rows["choices"].append(choices)
        rows["label"].append(_number(row, str(names["label"]), choices, f"row {number} of {source}"))
        for role in ("context", "question"):
            text = (row[names[role]] or "") if names[role] is not None else ""
            if not isinstance(text, str):
                raise DataError(f"row {number} of {source}: {names[role]!r} must be a text, not {text!r}")
            rows[role].append(text)
    if not rows["label"]:
        raise DataError(f"there are no questions in {source}")
    if not varied and len({len(choices) for choices in rows["choices"]}) > 1:
        raise DataError(
            f"the questions of {source} have different numbers of choices; give --candidates joint, or fill them up with empty texts"
        )
    return Dataset.from_dict(rows)


def _number(row: Mapping[str, Any], column: str, choices: list[str], where: str) -> int:
    label = row[column]
    if isinstance(label, str) and label in choices:
        return choices.index(label)
    if isinstance(label, str) and len(label.strip()) == 1 and label.strip().isalpha():
        label = ord(label.strip().upper()) - ord("A")
    elif isinstance(label, str) and label.strip().isdigit():
        label = int(label)
    if not isinstance(label, int) or not 0 <= label < len(choices):
        raise DataError(
            f"{where}: the label {row[column]!r} is none of its {len(choices)} choices; give a number from 0, a letter or the text"
        )
    return label


def to_choices(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """A row per question, with lists of a row per choice: question and choice come first, then the document, cut to what fits."""

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        firsts = [f"{row['question']} {choice}".strip() for choice in row["choices"]]
        if row["context"]:
            encoded = tokenizer(firsts, [row["context"]] * len(firsts), truncation="only_second", max_length=length)
        else:
            encoded = tokenizer(firsts, truncation=True, max_length=length)
        return {**encoded, "labels": row["label"], "length": max(map(len, encoded["input_ids"]))}

    return data.map(encode, remove_columns=data.column_names)


def _scores(trainer: TimedTrainer, data: Dataset) -> tuple[list[int], dict[str, Any]]:
    """The chosen numbers, and their accuracy by length."""
    strategy, trainer.args.train_sampling_strategy = trainer.args.train_sampling_strategy, "random"
    found = trainer.predict(data)
    trainer.args.train_sampling_strategy = strategy
    chosen = _chosen(found.predictions).tolist()
    return chosen, accuracy_by_length(chosen, data) if trainer.is_world_process_zero() else {}


def _accuracy(found: EvalPrediction) -> dict[str, float]:
    return {"accuracy": 100 * float((_chosen(found.predictions) == found.label_ids).mean())}


def _chosen(found: Any) -> np.ndarray:
    """Numbers of choices from scores (Q, C), or from numbers (Q,) as they are."""
    numbers = np.asarray(found)
    return numbers.argmax(-1) if numbers.ndim == 2 else numbers


def describe_choice(log: dict[str, Any]) -> str:
    """What a model card says about a run."""
    questions, sources = f"{log['questions']:,} questions", ", ".join(log["settings"]["data"])
    inputs = f"inputs of up to {log['input_length']:,} tokens"
    return f"{steps_of(log)} with `longattn train choice` on {questions} of {sources}, {inputs}. {choice_result(log)}."


def choice_result(log: dict[str, Any]) -> str:
    """What is printed at the end of a run."""
    told = [
        f"accuracy {scores['accuracy']:.1f} ± {scores['accuracy_se']:.1f} % {when}" for when, scores in log["held_out"].items() if scores
    ]
    return f"held out: {'; '.join(told)}"
