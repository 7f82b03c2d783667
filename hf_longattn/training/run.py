"""The run of every task: begin, train or resume, evaluate, save the model with its log and card, and report errors as one sentence.

`docs/extending.md` and ``examples/extend/score.py`` show a task. ``compute_metrics`` (or ``measure=``) returns scores by name, with
``NAME_se`` for standard errors and ``n`` for the number of rows; names in :data:`~hf_longattn.training.saving.METRICS` are in per cent.
``HEAD_accuracy`` is the accuracy of one of several heads.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import sys
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import logging

import hf_longattn
from hf_longattn.data.sources import DataError
from hf_longattn.errors import CheckpointError, LongAttentionError, OptionError, UsageError, error_line, visible
from hf_longattn.files import check_writable, write_text
from hf_longattn.hub import check_login
from hf_longattn.loading import load_weights
from hf_longattn.training.arguments import DataArguments, LongTrainingArguments, ModelArguments, changed
from hf_longattn.training.lora import low_rank_updates
from hf_longattn.training.saving import describe, plain_scores, save
from hf_longattn.training.task import parse_task
from hf_longattn.training.trainer import LongTrainer

SCORES_NAME, STATE = "scores.json", "trainer_state.json"
"""The file of an evaluation, and the last file of a checkpoint."""
MODEL_FILES = ("config.json", "*.safetensors", "*.bin", "checkpoint-*")
"""Files that a run without ``--overwrite`` does not replace."""
FULL = ("No space left on device", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed writing file", "iostream")
"""Messages about a full disk, a quota, or a limit on file sizes. torch says "basic_ios::clear: iostream error" for the last two."""


def begin(model_args: ModelArguments, data_args: DataArguments, training_args: LongTrainingArguments) -> None:
    """Refuse an output with another model before anything slow, find the checkpoint to resume from, and set the seed.

    Raises:
        OptionError: the output is the folder of the model, or holds a model, checkpoints or scores.
        CheckpointError: the output cannot be written, or no checkpoint can be resumed.
        HubError: ``push_to_hub`` without access.
    """
    args, folder = training_args, training_args.folder
    data_args.only_scores = not args.do_train
    if folder.exists() and folder.resolve() == Path(model_args.model).resolve():
        raise OptionError(f"The output {str(folder)!r} is the folder of --model, which would be overwritten; give another --output.")
    if args.do_train and (args.resume or args.resume_from_checkpoint):
        start = Path(args.resume_from_checkpoint) if args.resume_from_checkpoint else newest_checkpoint(folder)
        if start is None or not is_complete(start):
            raise CheckpointError(f"There is no complete checkpoint in {str(start or folder)!r} to resume from; leave --resume out.")
        args.resume_from_checkpoint, args.eval_on_start = str(start), False
    if not args.overwrite and not resumes_output(args):
        if not args.do_train and (folder / SCORES_NAME).exists():
            raise OptionError(f"{str(folder)!r} holds scores already; give another --output, or add --overwrite to replace them.")
        if any(next(folder.glob(pattern), None) for pattern in MODEL_FILES):
            advice = "add --overwrite to replace it, --resume to continue from its latest checkpoint, or " if args.do_train else ""
            raise OptionError(f"{str(folder)!r} holds a model, or checkpoints of an earlier run; {advice}give another --output.")
    check_writable(folder)
    if args.push_to_hub and not args.do_train:
        raise OptionError("--push-to-hub uploads a model after its training, and nothing is trained here; leave it out.")
    if args.push_to_hub:
        check_login(str(args.hub_model_id or folder.absolute().name), args.hub_token, private=bool(args.hub_private_repo))
    if args.disable_tqdm or not args.should_log:
        datasets.disable_progress_bars()
        logging.disable_progress_bar()
    transformers.set_seed(args.seed)


def finish(
    trainer: LongTrainer, model_args: ModelArguments, data_args: DataArguments, *, hub_task: str | None = None, **facts: Any
) -> dict[str, Any]:
    """Train or resume, evaluate, and save model, tokenizer, log and card; push them with ``push_to_hub``.

    The log is written last and in one step: a folder with a log holds a finished training. Without ``do_train``, evaluate and save the
    scores alone.

    Args:
        trainer: its arguments are a :class:`LongTrainingArguments`.
        hub_task: the Hub's name of the measured task, if it differs from the head's.
        facts: more entries of the log, of values for JSON. Numbers are in the card, too; so is ``note``, which follows the scores.

    Returns:
        The log: settings, versions, ``metrics`` before and after, the facts and Trainer's history.

    Raises:
        CheckpointError: the disk became full.
        DataError: there are no rows to train on, or none to evaluate on.
        OptionError: LoRA with sharded weights, or a metric for the best model that no evaluation has.
    """
    args: Any = trainer.args
    sharded, first = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled, trainer.is_world_process_zero()
    data = " ".join(data_args.data)
    for rows, use in ((trainer.eval_dataset, "evaluate on"), (trainer.train_dataset, "train on")):
        if isinstance(rows, Sized) and not len(rows):
            source = (data_args.validation or f"{data} (held out)") if use == "evaluate on" else data
            raise DataError(f"No row of {source} is left to {use}: the tokenizer makes only special tokens of its texts; give other data.")
    if first:
        how = f"resuming from {start} the training of" if (start := args.resume_from_checkpoint) else "training"
        print(f"hf_longattn {hf_longattn.__version__}: {how if args.do_train else 'scoring'} {model_args.model}", file=sys.stderr)
    if sharded and not (trainer.shards and args.do_train):
        raise OptionError("This does not run under FSDP or DeepSpeed; start whole copies with accelerate launch --multi_gpu.")
    with sentence_if_full(args.folder):
        if args.do_train:
            if sharded and model_args.lora_rank:
                raise OptionError("Weights that FSDP or DeepSpeed shards cannot be merged with LoRA updates; leave --lora-rank out.")
            if first and not resumes_output(args):
                for old in args.folder.glob("checkpoint-*"):  # a later --resume must not find them
                    shutil.rmtree(old)
            trainer.accelerator.wait_for_everyone()
            with low_rank_updates(trainer.model, model_args.lora_rank):
                if args.resume_from_checkpoint and not sharded:
                    load_renamed(trainer.model, Path(args.resume_from_checkpoint))
                try:
                    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
                except KeyError as error:
                    if "metric_for_best_model" not in str(error):
                        raise
                    raise OptionError(f"{error.args[0].partition('. Consider')[0]}.") from error
                if trainer.state.best_model_checkpoint and args.load_best_model_at_end and not sharded:
                    load_renamed(trainer.model, Path(trainer.state.best_model_checkpoint))
        before: dict[str, Any] = next((entry for entry in trainer.state.log_history if not entry["step"] and "eval_n" in entry), {})
        metrics = {"before": plain_scores(before), "after": plain_scores(trainer.evaluate())}
        settings = {**changed(model_args), **changed(data_args), **args.settings}
        versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers", "datasets")}}
        log = {"settings": settings, "versions": versions, "scored_rows": data_args.scored_rows, "metrics": metrics, **facts}
        log["history"] = trainer.state.log_history
        if args.do_train:
            save(trainer, model_args.model, log, hub_task)
        elif first:
            args.folder.mkdir(parents=True, exist_ok=True)
            write_text(args.folder / SCORES_NAME, json.dumps(log, indent=1))
    trainer.accelerator.wait_for_everyone()
    return log


def resumes_output(args: LongTrainingArguments) -> bool:
    """Whether a run resumes the run in its own output."""
    return bool(args.resume_from_checkpoint) and Path(str(args.resume_from_checkpoint)).resolve().parent == args.folder.resolve()


def newest_checkpoint(folder: Path) -> Path | None:
    """The latest complete checkpoint in ``folder``; ``None`` without any."""
    complete = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit() and is_complete(path)]
    return max(complete, key=lambda path: int(path.name[11:]), default=None)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint has its state, which is the file that Trainer writes last."""
    try:
        return "global_step" in json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def load_renamed(model: Any, folder: Path) -> None:
    """Load a checkpoint whose weights have other names than the model's parameters, as ``from_pretrained`` does; Trainer does not.

    transformers saves a ViT, a mixture of experts and others under older names.
    """
    names: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    if isinstance(model, PreTrainedModel) and not names <= set(model.state_dict()):
        model.load_state_dict(load_weights(type(model), folder, config=model.config, dtype=model.dtype).state_dict())


@contextmanager
def sentence_if_full(folder: Path) -> Iterator[None]:
    """Turn a full disk into a sentence. safetensors and torch raise it without an errno."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, CheckpointError) as error:
        cause: BaseException | None = error
        while cause is not None and not any(words in str(cause) for words in FULL):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise CheckpointError(f"The disk of {str(folder)!r} is full; free space, and {how_to_resume(folder)}.") from error


def how_to_resume(folder: Path) -> str:
    """The advice after a run that ended early."""
    newest = newest_checkpoint(folder)
    return f"run again with --resume, from {newest}" if newest else "run again with --overwrite, since no checkpoint is complete"


def run_task(task: ModuleType, words: list[str], prog: str | None = None) -> int:
    """Run a training or an evaluation from a command line. Of several processes only the first one prints.

    Args:
        task: a module with ``ARGUMENTS`` and ``main``; see above.
        prog: the command in messages and help, "longattn train qa".

    Returns:
        The exit code: 0, or with one sentence on stderr 1 (refused or failed), 2 (wrong usage) or 130 (interrupted).
    """
    first, folder, code = int(os.environ.get("RANK", "0")) == 0, None, 0
    try:
        model_args, data_args, training_args = parse_task(task, words, prog or str(task.__file__))
        folder = training_args.folder
        log = task.main(model_args, data_args, training_args)
        if first:
            written = folder if training_args.do_train else folder / SCORES_NAME
            print(visible(f"{describe(log)}\nwritten to {written}"), file=sys.stderr)
    except LongAttentionError as error:
        code = 2 if isinstance(error, UsageError) else 1
        print(error_line(error), file=sys.stderr)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT  # as of a shell
        if first:
            print(visible(f"Stopped; {how_to_resume(folder)}." if folder else "Stopped."), file=sys.stderr)
    if code and torch.distributed.is_available() and torch.distributed.is_initialized():
        sys.stderr.flush()
        os._exit(code)  # destroying a process group without its other processes may hang
    return code
