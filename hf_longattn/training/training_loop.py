"""What every task shares: parse, train or resume, save the model with its log and card, and report errors as one sentence."""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from safetensors import SafetensorError

import hf_longattn
from hf_longattn.errors import CheckpointError, LongAttentionError, OptionError
from hf_longattn.hub import MeasuredResult, from_source, write_model_card
from hf_longattn.training.args import (
    DataArguments,
    LongTrainingArguments,
    ModelArguments,
    TaskArguments,
    parse_arguments,
)
from hf_longattn.training.checkpoints import newest_checkpoint
from hf_longattn.training.results import CURVES, draw_curves, measured
from hf_longattn.training.trainer import TimedTrainer

LOG_NAME = "training_log.json"
Model = TypeVar("Model", bound=ModelArguments)
Data = TypeVar("Data", bound=DataArguments)
Training = TypeVar("Training", bound=LongTrainingArguments)


def run_training(
    kinds: tuple[type[Model], type[Data], type[Training]],
    arguments: list[str] | None,
    description: str,
    *,
    train: Callable[[Model, Data, Training], dict[str, Any]],
    result: Callable[[dict[str, Any]], str] = lambda log: "",
    prog: str | None = None,
) -> int:
    """Run a training command; of several processes only the first one prints.

    Args:
        kinds: the dataclasses of its model, data and training arguments.
        arguments: the command line; ``None`` = the process's.
        description: the command's docstring, whose first paragraph appears in the help.
        train: runs the training and returns its log.
        result: what to print of the log at the end.
        prog: the command in the help; ``None`` = the process's.

    Returns:
        The exit code: 0, or 1 with one sentence on stderr.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    try:
        model_args, data_args, training_args = parse_arguments(
            kinds, sys.argv[1:] if arguments is None else arguments, description.split("\n\n")[0], prog
        )
        if first:
            print(f"hf_longattn {hf_longattn.__version__}: training {model_args.model}", file=sys.stderr)
        log = train(model_args, data_args, training_args)
    except LongAttentionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if first:
        print("\n".join(line for line in (result(log), f"written to {training_args.output_dir}") if line), file=sys.stderr)
    return 0


def begin(model_args: ModelArguments, data_args: DataArguments, training_args: LongTrainingArguments) -> TaskArguments:
    """Refuse arguments that contradict one another; set threads and seed."""
    run = TaskArguments(model_args, data_args, training_args)
    run.check()
    if training_args.threads:
        torch.set_num_threads(training_args.threads)
    transformers.set_seed(training_args.seed)
    return run


def train(trainer: TimedTrainer, run: TaskArguments) -> None:
    """Train, or resume from the latest complete checkpoint.

    Raises:
        CheckpointError: there are checkpoints, but none is complete.
        OptionError: ``dtype`` with sharded weights.
    """
    dtype, args = run.model.dtype, run.training
    if dtype != "float32" and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise OptionError(f"weights that FSDP or DeepSpeed shards are saved in the type they are trained in; leave --dtype {dtype} out")
    newest = newest_checkpoint(args.folder) if args.resume else None
    with one_sentence_if_full(args.folder):
        trainer.train(resume_from_checkpoint=newest or args.resume_from_checkpoint)


@contextmanager
def one_sentence_if_full(folder: Path) -> Iterator[None]:
    """Turn a full disk into a sentence that names what a run can resume from. Older checkpoints are deleted only after a newer one is
    complete, so the training state is never lost.

    Raises:
        CheckpointError: the disk became full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _disk_full(error):
            raise
        try:
            newest = newest_checkpoint(folder)
        except CheckpointError:
            newest = None
        kept = f"the latest complete checkpoint is {newest}; free space and run again with --resume" if newest else (
            "there is no complete checkpoint yet; free space, or give an --output on another disk"
        )  # fmt: skip
        raise CheckpointError(f"the disk of {str(folder)!r} is full: {kept}") from error


def _disk_full(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is that of a full disk; safetensors and torch raise it without an errno, with words only."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def finish(trainer: TimedTrainer, run: TaskArguments, log: dict[str, Any], describe: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """Save model, tokenizer, log and card, and push them if ``push_to_hub`` is set.

    Args:
        describe: what the card says about a log.

    Returns:
        The log: ``log`` with the given arguments, versions and Trainer's history.
    """
    args = run.training
    log = {"settings": run.settings, "versions": versions(), **log, "history": trainer.state.log_history}
    if trainer.is_world_process_zero():
        args.folder.mkdir(parents=True, exist_ok=True)
        with one_sentence_if_full(args.folder):
            (args.folder / LOG_NAME).write_text(json.dumps(log, indent=1), encoding="utf-8")
            draw_curves(trainer.state.log_history, args.folder / CURVES)
    if run.model.dtype != "float32":
        trainer.accelerator.unwrap_model(trainer.model).to(getattr(torch, run.model.dtype))
    rows = measured(log, run.data.hub_task)
    trainer.card = lambda: write_trained_card(
        run.model.model, args.folder, describe(log), getattr(trainer, "hub_model_id", None), results=rows
    )
    with one_sentence_if_full(args.folder):
        trainer.save_model()  # pushes if asked to
        if not args.push_to_hub:
            trainer.create_model_card()
    trainer.accelerator.wait_for_everyone()
    return log


def write_trained_card(model: str, folder: Path, training: str, repo_id: str | None = None, results: Sequence[MeasuredResult] = ()) -> None:
    """Write the card of a trained model into its folder, with the licence, language and base of ``model``, which it was trained from, and
    the name it is pushed to."""
    made_from = Path(model).name if Path(model).exists() else model
    contents = {**from_source(model), **({"name": repo_id} if repo_id else {})}
    write_model_card(
        folder, training=f"Fine-tuned from `{made_from}`. {training}", results=results, measured="", eval_results=None, **contents
    )


def versions() -> dict[str, str]:
    """Python and the libraries that determine a run."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers", "datasets")}}
