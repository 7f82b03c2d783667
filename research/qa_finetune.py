"""One fine-tuning run: from settings to a written checkpoint and its log."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import datasets
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)

from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.modeling.token_globals import carry_question, takes_globals
from hf_longattn.training import course
from hf_longattn.training.qa_data import load_qa
from hf_longattn.training.qa_features import QAFormat
from hf_longattn.training.settings import training_arguments
from hf_longattn.training.versions import versions
from research import corpus
from research.docstring_qa import build_docstring_qa
from research.qa_collator import PositionRange
from research.qa_groups import GroupedFeatures
from research.qa_pointers import attach_pointers, detach_pointers
from research.qa_settings import QASettings
from research.qa_stream import CURRICULUM, Curriculum, QAStream, Stage
from research.qa_trainer import QATrainer
from research.variable_tracking import Filler

save_qa_model = course.save_trained


def finetune_qa(settings: QASettings, on_log: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Train a question-answering model and write it to ``settings.output``.

    Args:
        settings: what to train, on what, for how long.
        on_log: called with every log entry, in place of Trainer's own printing.

    Returns:
        The log, as written to ``training_log.json``: settings, versions and Trainer's history.
    """
    course.begin(settings)
    model, tokenizer = load_qa_model(settings.model)
    form = format_for(model, tokenizer, settings)
    curriculum = _curriculum(settings)
    data = _training_data(settings, tokenizer, form, curriculum)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if settings.pointer_layers:
        attach_pointers(model, settings.pointer_layers, settings.pointer_weight)
    validation = None
    if settings.validation:
        records = load_qa(settings.validation, settings.validation_split)
        windows = dataclasses.replace(form, stride=settings.stride)
        validation = GroupedFeatures(records, tokenizer, windows, settings.tokens_per_step, settings.seed)
    arguments = training_arguments(
        settings,
        per_device_train_batch_size=1,  # the data yield groups of features
        per_device_eval_batch_size=1,
        prediction_loss_only=True,
        adam_beta2=settings.adam_beta2,
        remove_unused_columns=False,
    )
    trainer = QATrainer(
        model,
        arguments,
        data,
        eval_dataset=validation,
        pad_token_id=tokenizer.pad_token_id or 0,
        max_minutes=settings.max_minutes,
        random_positions=settings.random_positions,
        windows=settings.windows,
        curriculum=curriculum if "lookup" in settings.data else None,
    )
    if on_log is not None:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Report(on_log))
    before = None if validation is None else trainer.evaluate()["eval_loss"]
    course.train(trainer, settings)
    after = None if validation is None else trainer.evaluate()["eval_loss"]
    detach_pointers(model)
    log = {"settings": vars(settings), "versions": versions(), "history": trainer.state.log_history}
    if validation is not None:
        log["held_out_loss"] = {"before": before, "after": after}
    return course.finish(trainer, model, tokenizer, settings, log)


class _Report(TrainerCallback):
    def __init__(self, on_log: Callable[[dict[str, Any]], None]) -> None:
        self.report = on_log

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            self.report(logs)


def describe_training(log: dict[str, Any]) -> str:
    """Return what a model card says about a run: its length, the last figures of the log, and the settings not at their default."""
    settings, last = log["settings"], {key: value for entry in log["history"] for key, value in entry.items()}
    usual = QASettings()
    changed = {
        k: v
        for k, v in settings.items()
        if v != getattr(usual, k) and k not in ("model", "output", "data", "threads", "progress", "resume")
    }
    minutes = last.get("train_runtime", 0.0) / 60
    data = ", ".join(settings["data"])
    lines = [f"{last.get('step', 0):,} steps in {minutes:.1f} minutes with `scripts/train_qa.py`, on {data}:", ""]
    lines += [f"- `{key}`: {value}" for key, value in changed.items()]
    exact = {key.removeprefix("exact_"): value for key, value in last.items() if key.startswith("exact_")}
    if exact:
        found = ", ".join(f"{task} {100 * share:.0f} %" for task, share in exact.items())
        lines += ["", f"Answers found in the last training batches: {found}."]
    if "held_out_loss" in log:
        loss = log["held_out_loss"]
        lines += ["", f"Loss on `{settings['validation']}`: {loss['before']:.3f} before, {loss['after']:.3f} after."]
    lines += ["", log["note"]] if "note" in log else []
    return "\n".join(lines)


def load_qa_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model with a question-answering head (new if the checkpoint has none) in float32, and its fast tokenizer."""
    try:
        model = AutoModelForQuestionAnswering.from_pretrained(name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load {name!r}: {str(error).splitlines()[0]}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"the tokenizer of {name!r} gives no character offsets; question answering needs a fast tokenizer")
    return model, tokenizer


def format_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: QASettings) -> QAFormat:
    """Return how documents become inputs of this model; its config is told which tokens are global, so that it reads as it was trained.

    Raises:
        OptionError: the question is to be global in a model without global tokens.
    """
    longest = longest_input(model, tokenizer)
    length, question = min(settings.max_length or longest, longest), settings.max_question_tokens
    if settings.global_question is False:
        if getattr(model.config, "question_separator_id", None) is not None:
            model.config.question_separator_id = None
        return QAFormat(length, max_question_tokens=question)
    chosen_by_model = carry_question(model, tokenizer)
    if settings.global_question and not takes_globals(model):
        raise OptionError(f"global_question was asked for, but no layer of {settings.model!r} takes global tokens; leave it out")
    return QAFormat(length, None, bool(settings.global_question) and not chosen_by_model, question)


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the model takes."""
    positions = PositionRange.of(model)
    return positions.count if positions else int(getattr(model.config, "max_position_embeddings", tokenizer.model_max_length))


def _curriculum(settings: QASettings) -> Curriculum:
    if not settings.lookup_lengths:
        return Curriculum(CURRICULUM, settings.step_up)
    shortest, longest = settings.lookup_lengths
    gap = 512 if shortest >= 1024 else 0
    return Curriculum((Stage(shortest, longest, 4, 4, gap),), settings.step_up)


def _training_data(settings: QASettings, tokenizer: PreTrainedTokenizerBase, form: QAFormat, curriculum: Curriculum) -> Dataset:
    modules = _shuffled_modules(settings) if {"docstring", "lookup"} & set(settings.data) else []
    parts = [_records(name, settings, tokenizer, modules) for name in settings.data if name != "lookup"]
    columns = ["id", "question", "context", "answers"]
    records = datasets.concatenate_datasets([part.select_columns(columns) for part in parts]) if parts else None
    if settings.epochs is not None and records is not None:
        windows = dataclasses.replace(form, stride=settings.stride)
        return GroupedFeatures(records, tokenizer, windows, settings.tokens_per_step, settings.seed)
    filler = None
    if "lookup" in settings.data:
        filler = Filler((module.text for module in modules), tokenizer)
    return QAStream(
        tokenizer,
        form,
        records=records,
        filler=filler,
        curriculum=curriculum,
        lookup_share=settings.lookup_share,
        tokens_per_group=settings.tokens_per_step,
        seed=settings.seed,
        pack=settings.pack,
        crop=(settings.crop[0], settings.crop[1]) if settings.crop else None,
    )


def _records(name: str, settings: QASettings, tokenizer: PreTrainedTokenizerBase, modules: list[corpus.Module]) -> datasets.Dataset:
    if name != "docstring":
        return load_qa(name, settings.split)
    return build_docstring_qa(
        settings.split,
        tokenizer=tokenizer,
        min_tokens=settings.min_tokens,
        max_tokens=settings.max_tokens,
        questions_per_module=settings.questions_per_module,
        limit=settings.max_questions or None,
        modules=modules,
        seed=settings.seed,
    )


def _shuffled_modules(settings: QASettings) -> list[corpus.Module]:
    modules = list(corpus.iter_modules(settings.split))
    random.Random(settings.seed).shuffle(modules)
    return modules
