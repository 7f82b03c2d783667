"""The run of every task: parse, train or resume, save the model with its log and card, and report errors as one sentence."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

import hf_longattn
from hf_longattn.data.sources import DataError
from hf_longattn.errors import CheckpointError, LongAttentionError, OptionError, UsageError, error_line, in_one_line, rust_panics, visible
from hf_longattn.files import check_writable, public_name, read_json_object, write_text
from hf_longattn.hub import MeasuredResult, from_source, write_model_card
from hf_longattn.training.adapters import low_rank_updates, transformers_model
from hf_longattn.training.args import DataArguments, ModelArguments
from hf_longattn.training.checkpoints import STATE, check_checkpoint, check_same_model, checkpoint_to_resume, checkpoints, place_or_name
from hf_longattn.training.old_trainer import LongTrainer
from hf_longattn.training.parsing import parse_arguments
from hf_longattn.training.processes import hard_exit, how_to_resume, is_distributed, sentence_if_lost
from hf_longattn.training.results import measured, sources_in_words
from hf_longattn.training.task import Task
from hf_longattn.training.training_args import LongTrainingArguments, TaskArguments

LOG_NAME = "training_log.json"
SCORES_NAME = "scores.json"
"""The file of an evaluation."""
INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C."""
KEPT = ("config.json", "*.safetensors", "*.bin", "checkpoint-*")
"""Files that a run without ``--overwrite`` does not replace."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed writing file", "iostream")
"""Messages about a full disk, a quota, or a limit on file sizes. torch says "basic_ios::clear: iostream error" for the last two."""
OutputCheck = Callable[[Any], None]


class FullDiskError(CheckpointError):
    """The disk is full. The sentence says how to resume."""


def run_task(task: Task, arguments: list[str] | None, description: str, prog: str | None = None) -> int:
    """Run a training or an evaluation from a command line; of several processes only the first one prints.

    Args:
        task: its arguments and functions.
        arguments: the command line; ``None`` = the process's.
        description: for the help.
        prog: the command in the help; ``None`` = the process's.

    Returns:
        The exit code: 0, or with one sentence on stderr 1 (refused or failed), 2 (wrong usage) or 130 (interrupted).
    """
    first = int(os.environ.get("RANK", "0")) == 0
    folder = None
    try:
        model_args, data_args, training_args = parse_arguments(
            task.arguments, sys.argv[1:] if arguments is None else arguments, description, prog
        )
        folder = training_args.folder
        if training_args.disable_tqdm or not first:
            datasets.disable_progress_bars()
            logging.disable_progress_bar()
        with one_sentence_if_full(folder), sentence_if_lost(folder), rust_panics():
            log = task.train(model_args, data_args, training_args)
    except LongAttentionError as error:
        print(error_line(error), file=sys.stderr)
        if is_distributed():
            hard_exit()
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        if first:
            print(visible(f"Stopped: {how_to_resume(folder)}." if folder else "Stopped."), file=sys.stderr)
        if is_distributed():
            hard_exit(INTERRUPTED)
        return INTERRUPTED
    except Exception:
        if not is_distributed():
            raise
        traceback.print_exc()
        hard_exit()
    if first:
        written = folder / SCORES_NAME if training_args.only_scores else training_args.output_dir
        print(visible("\n".join(line for line in (task.result(log), f"written to {written}") if line)), file=sys.stderr)
    return 0


def prepare_run(
    model_args: ModelArguments, data_args: DataArguments, training_args: LongTrainingArguments, check: OutputCheck | None = None
) -> TaskArguments:
    """Refuse contradictory arguments and an output with another model. Then set threads and seed.

    Args:
        check: refuses an output; default: :func:`check_output` and :func:`starting_point`.

    Raises:
        OptionError: arguments contradict one another, or the output holds a model or checkpoints.
        CheckpointError: the output cannot be written, or no checkpoint can be resumed.
    """
    run = TaskArguments(model_args, data_args, training_args)
    run.check()
    (check or check_output)(training_args)
    check_writable(training_args.folder)
    if check is None:
        starting_point(run)  # before anything slow
    if training_args.threads:
        torch.set_num_threads(training_args.threads)
    transformers.set_seed(training_args.seed)
    return run


def check_output(args: LongTrainingArguments) -> None:
    """Refuse to write over a model, or to mix checkpoints of two runs in one folder.

    Raises:
        OptionError: the output holds a model or checkpoints of a run that is not resumed, or an earlier evaluation's scores, and
            ``overwrite`` is not set.
    """
    if args.overwrite:
        return
    if args.only_scores:
        if (args.folder / SCORES_NAME).exists():
            raise OptionError(f"{args.output_dir!r} holds scores already; give another --output, or add --overwrite to replace them.")
        if holds_model(args.folder):  # whose predictions would be replaced
            raise OptionError(f"{args.output_dir!r} holds a model; give another --output for the scores.")
        return
    done = (args.folder / LOG_NAME).exists()
    if resumes_output(args):
        if done and args.resume and not checkpoints(args.folder):
            raise OptionError(
                f"{args.output_dir!r} holds a finished training without checkpoints to resume from; add --overwrite to train again from "
                "the beginning, or give another --output."
            )
    elif done:
        raise OptionError(
            f"{args.output_dir!r} holds a finished training; give another --output, or add --overwrite to replace it, or --resume to "
            "continue from its latest checkpoint."
        )
    elif checkpoints(args.folder):
        raise OptionError(
            f"{args.output_dir!r} holds checkpoints of an earlier run; add --resume to continue it, --overwrite to start again, or give "
            "another --output."
        )
    else:
        check_holds_no_model(args)


def check_holds_no_model(args: LongTrainingArguments) -> None:
    """Refuse an output with a model of another program.

    Raises:
        OptionError: the output holds a model.
    """
    if holds_model(args.folder):
        raise OptionError(f"{args.output_dir!r} holds a model; give another --output, or add --overwrite to replace it.")


def holds_model(folder: Path) -> bool:
    """Whether a folder has files of a model or of a training."""
    return any(next(folder.glob(pattern), None) for pattern in KEPT)


def resumes_output(args: LongTrainingArguments) -> bool:
    """Whether a run resumes the run in its own output."""
    if args.resume_from_checkpoint:
        return Path(args.resume_from_checkpoint).resolve().parent == args.folder.resolve()
    return args.resume


def starting_point(run: TaskArguments) -> str | None:
    """The checkpoint to resume from: the named one, or with ``resume`` the latest complete one; ``None`` if neither is given.

    Raises:
        CheckpointError: the checkpoint is missing, incomplete, or of another model or other data.
    """
    args = run.training
    if args.resume_from_checkpoint:
        start = check_checkpoint(Path(args.resume_from_checkpoint))
    elif args.resume:
        start = checkpoint_to_resume(args.folder)
    else:
        return None
    check_same_model(Path(start), run.model.model, args, run)
    return start


def check_rows(rows: Any, sources: str, purpose: str) -> None:
    """Refuse data of which no row is left to ``purpose``, such as "train on".

    Raises:
        DataError: there are no rows, or no documents in a stream.
    """
    rows = getattr(rows, "documents", rows)
    if isinstance(rows, Sized) and not len(rows):
        raise DataError(f"No row of {sources} is left to {purpose}: the tokenizer makes only special tokens of its texts; give other data.")


def train(trainer: LongTrainer, run: TaskArguments, measure: Callable[[], Any] | None = None) -> Any:
    """Train, or resume from the latest complete checkpoint; in an evaluation, do nothing.

    Args:
        measure: measures the model before its first step, unless ``eval_on_start`` is off; see :class:`MeasureFirst`.

    Returns:
        The result of ``measure`` as JSON (tuples become lists), also in a resumed run; ``None`` without a measurement.

    Raises:
        CheckpointError: the checkpoint to resume from is not complete or of another model, or the disk became full.
        DataError: there are no rows to train on, or none to evaluate on.
        OptionError: ``dtype`` or ``use_peft`` with sharded weights, or a metric for the best model that no evaluation has.
    """
    dtype, args, sources = run.model.dtype, run.training, sources_in_words(run.settings)
    check_rows(trainer.eval_dataset, run.settings.get("validation") or f"{sources} (held out)", "evaluate on")
    check_rows(trainer.train_dataset, sources, "train on")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        if args.only_scores:
            raise OptionError("An evaluation reads whole weights; leave FSDP and DeepSpeed out.")
        if dtype != "float32":
            raise OptionError(
                f"Weights that FSDP or DeepSpeed shards are saved in the type they are trained in; leave --dtype {dtype} out."
            )
        if run.model.use_peft:
            raise OptionError("Weights that FSDP or DeepSpeed shards cannot be merged with LoRA updates; leave --use-peft out.")
    if args.only_scores:
        if trainer.is_world_process_zero():
            print(f"hf_longattn {hf_longattn.__version__}: scoring {run.model.model}", file=sys.stderr)
        return None
    start = starting_point(run)
    if not resumes_output(args) and trainer.is_world_process_zero():
        for old in checkpoints(args.folder):  # with --overwrite; a later --resume must not find them
            shutil.rmtree(old)
    first = MeasureFirst(measure, start) if measure is not None and args.measures_first else None
    if first is not None:
        trainer.add_callback(first)
    trainer.add_callback(RunSettings(run.settings))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        how = "training" if start is None else f"resuming from {start} the training of"
        inputs, passes = trainer.args.train_batch_size * trainer.args.world_size, trainer.args.gradient_accumulation_steps
        steps = f", steps of {inputs * passes} inputs ({passes} passes of {inputs})" if passes > 1 and not args.tokens_per_batch else ""
        print(f"hf_longattn {hf_longattn.__version__}: {how} {run.model.model}{steps}", file=sys.stderr)
    updates = low_rank_updates(transformers_model(trainer.model), run.model) if run.model.use_peft else nullcontext()
    with one_sentence_if_full(args.folder), updates:
        trainer.train(resume_from_checkpoint=start)
    return None if first is None else first.found


class RunSettings(TrainerCallback, ExportableState):
    """Stores the arguments of a run in trainer_state.json, so that other runs are recognised."""

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        self.settings = dict(settings or {})
        for name in {"model", "data", "text", "validation"} & self.settings.keys():
            value = self.settings[name]
            self.settings[name] = [*map(place_or_name, value)] if isinstance(value, list) else place_or_name(value)

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"settings": self.settings}}


class MeasureFirst(TrainerCallback, ExportableState):
    """Measures a model before its first step, when it is wrapped for its processes, and keeps the result in trainer_state.json.

    Before ``Trainer.train``, an evaluation makes accelerate take the model for prepared, and training then leaves DistributedDataParallel
    out: every process trains its model alone. FSDP 2 prepares no model without its optimizer.

    Args:
        measure: returns a value for JSON.
        start: the checkpoint to resume, which holds the result; ``None`` = it starts.
    """

    def __init__(self, measure: Callable[[], Any], start: str | None = None) -> None:
        self.measure, self.found = measure, None
        if start is not None:
            callbacks = TrainerState.load_from_json(str(Path(start, STATE))).stateful_callbacks or {}
            self.found = callbacks.get(type(self).__name__, {}).get("attributes", {}).get("found")

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.found is None:
            self.found = json.loads(json.dumps(self.measure()))

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"found": self.found}}


@contextmanager
def one_sentence_if_full(folder: Path) -> Iterator[None]:
    """Turn a full disk into a sentence that says how to resume. Older checkpoints are deleted only after a newer one is complete, so the
    training state is never lost.

    Raises:
        FullDiskError: the disk became full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, CheckpointError) as error:
        if isinstance(error, FullDiskError) or not _disk_full(error):
            raise
        raise FullDiskError(f"The disk of {str(folder)!r} is full: {how_to_resume(folder)}, after freeing space.") from error


def _disk_full(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is a full disk or a limit on files. safetensors and torch raise it without an errno."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or any(words in str(error) for words in FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def save_run(
    trainer: LongTrainer,
    run: TaskArguments,
    log: dict[str, Any],
    describe: Callable[[dict[str, Any]], str],
    *,
    hub_task: str | None = None,
) -> dict[str, Any]:
    """Save model, tokenizer, log and card, and push them if ``push_to_hub`` is set. The log is written last and in one step. A folder with
    a log holds a finished training. An evaluation saves only the log, as ``scores.json``.

    Args:
        describe: returns the card's text about a log.
        hub_task: the Hub's name of the measured task, if it differs from the head's.

    Returns:
        The log: ``log`` with the given arguments, versions and Trainer's history.
    """
    args = run.training
    log = {"settings": run.settings, "versions": versions(), "scored_rows": run.data.scored_rows, **log}
    log["history"] = trainer.state.log_history
    if args.only_scores:
        if trainer.is_world_process_zero():
            args.folder.mkdir(parents=True, exist_ok=True)
            write_text(args.folder / SCORES_NAME, json.dumps(log, indent=1))
        trainer.accelerator.wait_for_everyone()
        return log
    if trainer.is_world_process_zero():
        forget_model(args.folder, LOG_NAME)
    if run.model.dtype != "float32":
        trainer.accelerator.unwrap_model(trainer.model).to(getattr(torch, run.model.dtype))
    rows = measured(log, hub_task)

    def complete() -> None:
        write_trained_card(run.model.model, args.folder, describe(log), getattr(trainer, "hub_model_id", None), results=rows)
        write_text(args.folder / LOG_NAME, json.dumps(log, indent=1))

    trainer.card = complete
    with one_sentence_if_full(args.folder):
        trainer.save_model()  # pushes after the card, with --push-to-hub
        if not args.push_to_hub:
            trainer.create_model_card()
    trainer.accelerator.wait_for_everyone()
    return log


def forget_model(folder: Path, log: str) -> None:
    """Remove the log and other leftovers of an earlier training whose model is about to be replaced."""
    from hf_longattn.conversion import remove_sidecars

    if (folder / log).is_file():
        try:
            source = read_json_object(folder / log)["settings"]["model"]
        except (CheckpointError, KeyError, TypeError):  # a damaged log
            source = None
        (folder / log).unlink()
        remove_sidecars(folder, source)


def write_trained_card(model: str, folder: Path, training: str, repo_id: str | None = None, results: Sequence[MeasuredResult] = ()) -> None:
    """Write the card of a trained model: with the licence, language and base of the source ``model``, and the name on the Hub. Also copy
    the source's other files, which neither model nor tokenizer saves."""
    from hf_longattn.conversion import complete_folder

    complete_folder(folder, model)
    made_from = in_one_line(public_name(model))
    contents = {**from_source(model), **({"name": repo_id} if repo_id else {})}
    write_model_card(
        folder, training=f"Fine-tuned from `{made_from}`. {training}", results=results, measured="", eval_results=None, **contents
    )


def versions() -> dict[str, str]:
    """Python and the libraries that determine a run."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers", "datasets")}}
