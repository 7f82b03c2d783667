"""The run of every task: begin, train or resume, evaluate, and save the model with its log and card.

Errors are reported as one sentence. `docs/extending.md` and ``examples/extend/score.py`` show how to write a task.

A task's ``compute_metrics`` (or ``measure``) returns scores by name. ``NAME_se`` is the standard error of the score
``NAME``, and ``n`` the number of rows. Scores with names in :data:`METRICS` are in per cent. If a model has several
heads, ``HEAD_accuracy`` is the accuracy of the head ``HEAD``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

import hf_longattn

from ..data.sources import DataError
from ..errors import (
    CheckpointError,
    LongAttentionError,
    OptionError,
    UsageError,
    error_line,
    in_one_line,
    visible,
)
from ..evaluation.summaries import plus_minus
from ..files import (
    MODULES,
    check_writable,
    disk_errors,
    disk_is_full,
    locked,
    public_name,
    read_json_object,
    write_text,
)
from ..hub import check_login, from_source, push_model, write_model_card
from ..loading import fetch_model, load_weights
from ..mechanisms import Mechanism
from ..modeling.attach.attention_sites import attention_projections, self_attention
from ..modeling.unpadding import unpadded
from .arguments import DataArguments, LongTrainingArguments, ModelArguments, changed
from .resume import STATE, RunRecord, check_same_run, run_facts
from .tasks import parse_task
from .trainer import LongTrainer

SCORES_NAME = "scores.json"
"""Name of an evaluation's result file."""
MODEL_FILES = ("config.json", "*.safetensors", "*.bin", "checkpoint-*")
"""Patterns of files of an earlier run. A run without ``--overwrite`` refuses an output folder that has any."""


def begin(model_args: ModelArguments, data_args: DataArguments, training_args: LongTrainingArguments) -> None:
    """Check the output folder before anything slow, find the checkpoint to resume from, and set the seed.

    Raises:
        OptionError: the output is the model's folder, or already contains a model, checkpoints or scores.
        CheckpointError: the output cannot be written, or no checkpoint can be resumed.
        HubError: ``push_to_hub`` is set, but the Hub gives no access.
    """
    args, folder = training_args, training_args.folder
    data_args.only_scores = not args.do_train

    # The output folder and the checkpoint to resume from
    if folder.exists() and folder.resolve() == Path(model_args.model).resolve():
        raise OptionError(
            f"The output {str(folder)!r} is the folder of --model, which would be overwritten; give another --output."
        )
    if args.do_train and (args.resume or args.resume_from_checkpoint):
        if args.resume_from_checkpoint:
            start: Path | None = Path(args.resume_from_checkpoint)
        else:
            start = newest_checkpoint(folder)
        if start is None or not is_complete(start):
            raise CheckpointError(
                f"There is no complete checkpoint in {str(start or folder)!r} to resume from; leave --resume out."
            )
        args.resume_from_checkpoint = str(start)
        args.eval_on_start = False
    if not args.overwrite and not resumes_output(args):
        refuse_earlier_results(folder, args.do_train)
    check_writable(folder)

    # Access to the Hub
    if args.push_to_hub:
        if not args.do_train:
            raise OptionError(
                "--push-to-hub uploads a model after its training, and nothing is trained here; leave it out."
            )
        check_login(
            str(args.hub_model_id or folder.absolute().name), args.hub_token, private=bool(args.hub_private_repo)
        )

    if args.disable_tqdm or not args.should_log:
        datasets.disable_progress_bars()
        logging.disable_progress_bar()
    transformers.set_seed(args.seed)


def refuse_earlier_results(folder: Path, trains: bool) -> None:
    """Refuse an output folder with scores (if nothing is trained), a model or checkpoints of an earlier run."""
    if not trains and (folder / SCORES_NAME).exists():
        raise OptionError(
            f"{str(folder)!r} holds scores already; give another --output, or add --overwrite to replace them."
        )
    if any(next(folder.glob(pattern), None) for pattern in MODEL_FILES):
        advice = "give another --output"
        if trains:
            advice = (
                "add --overwrite to replace it, --resume to continue from its latest checkpoint, or give another "
                "--output"
            )
        raise OptionError(f"{str(folder)!r} holds a model, or checkpoints of an earlier run; {advice}.")


def finish(
    trainer: LongTrainer,
    model_args: ModelArguments,
    data_args: DataArguments,
    *,
    hub_task: str | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Train or resume, evaluate, and save model, tokenizer, log and card. Push them to the Hub with ``push_to_hub``.

    The log is written last and in one step, so a folder with a log has a finished training. Without ``do_train``, the
    model is only evaluated, and its scores are saved.

    Args:
        trainer: a trainer whose arguments are a :class:`LongTrainingArguments`.
        hub_task: the Hub's name of the measured task, if it is not the usual task of the model's head.
        facts: more entries of the log, as JSON values. The model card shows the integers among them, and the text
            ``note`` after the scores.

    Returns:
        The log: settings, versions, ``metrics`` before and after, the facts and Trainer's history.

    Raises:
        CheckpointError: the disk became full.
        DataError: there are no rows to train on, or none to evaluate on.
        OptionError: LoRA is used with sharded weights, no evaluation has the metric for the best model, or the resumed
            training was begun with another model, other rows or other options.
    """
    args: Any = trainer.args
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    is_first_process = trainer.is_world_process_zero()
    refuse_empty(trainer, data_args)
    if is_first_process:
        action = "scoring"
        if args.do_train:
            action = "training"
            if args.resume_from_checkpoint:
                action = f"resuming from {args.resume_from_checkpoint} the training of"
        print(f"hf_longattn {hf_longattn.__version__}: {action} {model_args.model}", file=sys.stderr)
    if sharded and not (trainer.shards and args.do_train):
        raise OptionError(
            "This does not run under FSDP or DeepSpeed; start whole copies with accelerate launch --multi_gpu."
        )
    with sentence_if_full(args.folder):
        if args.do_train:
            if sharded and model_args.lora_rank:
                raise OptionError(
                    "Weights that FSDP or DeepSpeed shards cannot be merged with LoRA updates; leave --lora-rank out."
                )
            if is_first_process:
                begin_record(trainer, model_args, data_args)
            trainer.accelerator.wait_for_everyone()
            with low_rank_updates(trainer.model, model_args.lora_rank):
                train(trainer, sharded=sharded)
        with nullcontext() if sharded else unpadded(trainer.model):
            log = scored_log(trainer, model_args, data_args, facts)
        if args.do_train:
            save(trainer, model_args.model, log, hub_task)
        elif is_first_process:
            args.folder.mkdir(parents=True, exist_ok=True)
            write_text(args.folder / SCORES_NAME, json.dumps(log, indent=1))
    trainer.accelerator.wait_for_everyone()
    return log


def refuse_empty(trainer: LongTrainer, data_args: DataArguments) -> None:
    """Raise :class:`DataError` if no training row or no evaluation row is left."""
    data = " ".join(data_args.data)
    held_out = data_args.validation or f"{data} (held out)"
    for rows, source, use in (
        (trainer.eval_dataset, held_out, "evaluate on"),
        (trainer.train_dataset, data, "train on"),
    ):
        if isinstance(rows, Sized) and not len(rows):
            raise DataError(
                f"No row of {source} is left to {use}: the tokenizer makes only special tokens of its texts; give "
                "other data."
            )


def begin_record(trainer: LongTrainer, model_args: ModelArguments, data_args: DataArguments) -> None:
    """Let the trainer write the facts of :func:`run_facts` into its checkpoints.

    If the training is resumed, the facts are compared with the facts in the checkpoint. Checkpoints in the output
    folder are deleted, unless the training resumes from one of them.
    """
    args: Any = trainer.args
    record = RunRecord(run_facts(trainer.model, trainer.train_dataset, model_args, data_args))
    if args.resume_from_checkpoint:
        check_same_run(Path(args.resume_from_checkpoint), record.facts)
    trainer.add_callback(record)
    if not resumes_output(args):
        for old in args.folder.glob("checkpoint-*"):  # a later --resume must not find them
            shutil.rmtree(old)


def train(trainer: LongTrainer, *, sharded: bool) -> None:
    """Train or resume. With ``load_best_model_at_end``, the model has the weights of the best checkpoint afterwards.

    ``sharded`` is whether FSDP or DeepSpeed splits the weights over processes.
    """
    args: Any = trainer.args
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


def scored_log(
    trainer: LongTrainer, model_args: ModelArguments, data_args: DataArguments, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Evaluate, and return the log that :func:`finish` returns."""
    args: Any = trainer.args
    before_training = [entry for entry in trainer.state.log_history if not entry["step"] and "eval_n" in entry]
    before = plain_scores(before_training[0]) if before_training else {}
    metrics = {"before": before, "after": plain_scores(trainer.evaluate())}
    versions = {name: version(name) for name in ("torch", "transformers", "datasets")}
    return {
        "settings": {**changed(model_args), **changed(data_args), **args.settings},
        "versions": {"python": platform.python_version(), **versions},
        "scored_rows": data_args.scored_rows,
        "metrics": metrics,
        **facts,
        "history": trainer.state.log_history,
    }


def resumes_output(args: LongTrainingArguments) -> bool:
    """Whether the training resumes from a checkpoint in its output folder."""
    start = args.resume_from_checkpoint
    return bool(start) and Path(str(start)).resolve().parent == args.folder.resolve()


def newest_checkpoint(folder: Path) -> Path | None:
    """The latest complete checkpoint in ``folder``; ``None`` without any."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    complete = [path for path, step in steps.items() if step.isdigit() and is_complete(path)]
    return max(complete, key=lambda path: int(steps[path]), default=None)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint has a readable ``trainer_state.json``, the file that Trainer writes last."""
    try:
        return "global_step" in json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def load_renamed(model: Any, folder: Path) -> None:
    """Load the weights of a checkpoint if some of their names in its files are not names in the model.

    transformers saves the weights of a ViT, of a mixture of experts and of others under older names.
    ``from_pretrained`` renames them. Trainer does not, and would leave the weights of the model as they are.
    """
    names: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    if isinstance(model, PreTrainedModel) and not names <= set(model.state_dict()):
        model.load_state_dict(load_weights(type(model), folder, config=model.config, dtype=model.dtype).state_dict())


@contextmanager
def sentence_if_full(folder: Path) -> Iterator[None]:
    """Within the context, turn the error for a full disk into a :class:`CheckpointError` of one sentence.

    Files that were written within the context and incomplete checkpoints are deleted first.
    """
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*") if path.is_file()}
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, CheckpointError) as error:
        if not disk_is_full(error):
            raise
        for path in folder.glob("*"):
            if path.is_file() and before.get(path) != path.stat().st_mtime_ns:
                path.unlink(missing_ok=True)
            elif path.match("checkpoint-*") and not is_complete(path):
                shutil.rmtree(path, ignore_errors=True)
        raise CheckpointError(
            f"The disk of {str(folder)!r} is full; free space, and {how_to_resume(folder)}."
        ) from error


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Within the context, lock an output folder, so that a second training into it is refused.

    The folder is created. If it is empty at the end, it is removed again.

    Raises:
        CheckpointError: another training writes into the folder, or it cannot be written.
    """
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]  # innermost first
    existing = new_folders[-1].parent if new_folders else folder
    with disk_errors(existing):
        folder.mkdir(parents=True, exist_ok=True)
    refusal = f"Another training is writing {str(folder)!r}; wait for it, or give another --output."
    try:
        with locked(folder / ".lock", refusal):
            yield
    finally:
        for path in new_folders:
            with suppress(OSError):  # rmdir refuses a folder with files, which are the results of the training
                path.rmdir()


def how_to_resume(folder: Path) -> str:
    """What to type after a training that ended early."""
    newest = newest_checkpoint(folder)
    if newest is None:
        return "run again with --overwrite, since no checkpoint is complete"
    return f"run again with --resume, from {newest}"


def run_task(task: ModuleType, words: list[str], prog: str | None = None) -> int:
    """Run a training or an evaluation from a command line. Only the first of several processes prints.

    Args:
        task: a module with ``ARGUMENTS`` and ``main``; see this module's docstring.
        prog: the command in messages and help, such as "longattn train qa".

    Returns:
        The exit code: 0 for success, 1 for a refused or failed run, 2 for wrong usage, 130 for an interrupted run.
        With every code but 0, one sentence is printed on stderr.
    """
    is_first_process = int(os.environ.get("RANK", "0")) == 0
    folder = None
    code = 0
    try:
        model_args, data_args, training_args = parse_task(task, words, prog or str(task.__file__))
        folder = training_args.folder
        writes = is_first_process and training_args.do_train
        with only_writer(folder) if writes else nullcontext():
            log = task.main(model_args, data_args, training_args)
        if is_first_process:
            written = folder
            if not training_args.do_train:
                written = folder / SCORES_NAME
            print(visible(f"{describe(log)}\nwritten to {written}"), file=sys.stderr)
    except LongAttentionError as error:
        code = 1
        if isinstance(error, UsageError):
            code = 2
        print(error_line(error), file=sys.stderr)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT  # the code that a shell returns for this signal
        if is_first_process:
            advice = f"; {how_to_resume(folder)}" if folder else ""
            print(visible(f"Stopped{advice}."), file=sys.stderr)
    if code and torch.distributed.is_available() and torch.distributed.is_initialized():
        sys.stderr.flush()
        os._exit(code)  # destroying a process group without its other processes may hang
    return code


BESIDE_UPDATES = "trained_beside_updates"
"""Name of an attribute. A module that has it is trained in full when the rest of the model gets LoRA updates."""


@contextmanager
def low_rank_updates(network: nn.Module, rank: int) -> Iterator[None]:
    """Within the context, only LoRA updates and a few modules are trained. On exit, the updates are merged.

    The updates are of the attention projections, with a scale (``lora_alpha / r``) of 2. Mechanisms, poolers and heads
    are trained in full, except a head that predicts tokens.

    Args:
        network: a model of transformers, or a module that contains one.
        rank: rank of the updates. With 0, all weights are trained.
    """
    if not rank:
        yield
        return
    from peft import LoraConfig, get_peft_model

    model = next(module for module in network.modules() if isinstance(module, PreTrainedModel))
    targets: list[Any] = []  # names of the projections
    for site in self_attention(model):
        names = attention_projections(model, site.name)
        if not names:
            raise OptionError(
                f"No query, key and value projections are known in {site.name} ({type(site.module).__name__}), so "
                "LoRA has nothing to update; leave --lora-rank out to train all parameters."
            )
        targets += names

    # Parameters that are trained in full. get_peft_model freezes them, and they are unfrozen after it.
    trained: list[nn.Parameter] = []
    for name, module in model.named_modules():
        if isinstance(module, Mechanism) or name.endswith("pooler") or hasattr(module, BESIDE_UPDATES):
            trained += [parameter for parameter in module.parameters() if parameter.requires_grad]
    if model.get_output_embeddings() is None:  # the head does not predict tokens
        base = set(model.base_model.parameters())
        trained += [parameter for parameter in model.parameters() if parameter not in base]

    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in targets)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=list(dict.fromkeys(targets)), fan_in_fan_out=transposed
    )
    wrapped = get_peft_model(model, config)
    for parameter in trained:
        parameter.requires_grad_(True)
    yield
    wrapped.merge_and_unload()
    model.requires_grad_(True)


LOG_NAME = "training_log.json"
"""Name of the log. It is written last, so a folder with a log has a complete training."""
BESIDE = ("LICENSE*", "LICENCE*", "NOTICE*", "*processor_config.json", "chat_template*", "*.jinja")
"""Patterns of files to copy from the folder of the trained model. Saving a model and its tokenizer omits them."""
METRICS = {
    "exact_match": "exact match",
    "f1": "F1",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "precision": "precision",
    "recall": "recall",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "accuracy_at_1": "right document first",
    "mrr": "MRR@10",
    "ndcg": "nDCG@10",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "wer": "word error rate",
    "cer": "character error rate",
    "attention_error": "squared error of attention",
}
"""Name of a score in a log -> its name in messages and model cards. These scores are in per cent."""


def save(trainer: LongTrainer, source: str, log: dict[str, Any], hub_task: str | None) -> None:
    """Save model, tokenizer, card, log, and other files of the source. Push them to the Hub with ``push_to_hub``.

    The log is written last, and lists all files. The files in an earlier log are removed first, so that the model
    does not inherit an old chat template or licence.

    Args:
        source: folder or Hub name of the checkpoint from which the training started.
        hub_task: as in :func:`~hf_longattn.training.run.finish`.
    """
    args: Any = trainer.args
    folder, is_first_process = args.folder, trainer.is_world_process_zero()
    if is_first_process:
        remove_listed(folder)

    # Remove traces of the training from tokenizer and config.
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)  # of a processor
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # it has the truncation and padding of the last batch
        backend.no_truncation()
        backend.no_padding()
    config: Any = getattr(trainer.accelerator.unwrap_model(trainer.model), "config", None)
    if trainer.use_cache is not None:
        config.use_cache = trainer.use_cache
    elif config is not None:
        vars(config).pop("use_cache", None)

    # Model and tokenizer, in all processes
    earlier_files = {path.name for path in folder.iterdir()}
    if trainer.is_fsdp_enabled:  # checkpoints are sharded, but the saved model is not
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder), _internal_call=True)
    if not is_first_process:
        return
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that no user of the model needs
    complete_folder(folder, source)

    # Card and log
    card = from_source(source)
    if getattr(trainer, "hub_model_id", None) is not None:
        card["name"] = trainer.hub_model_id
    write_model_card(folder, training=training_sentence(log), results=measured(log, hub_task), **card)
    log["files"] = sorted({path.name for path in folder.iterdir() if path.is_file()} - earlier_files)
    write_text(folder / LOG_NAME, json.dumps(log, indent=1))
    if args.push_to_hub:
        push_model(
            folder,
            str(trainer.hub_model_id),
            revision=args.hub_revision,
            token=args.hub_token,
            private=bool(args.hub_private_repo),
        )


def remove_listed(folder: Path) -> None:
    """Remove the log of an earlier training, and the files that the log lists. Files in other folders stay."""
    if not (folder / LOG_NAME).is_file():
        return
    names = read_json_object(folder / LOG_NAME).get("files", [])
    (folder / LOG_NAME).unlink()
    for name in names:
        if Path(name).name == name and (folder / name).is_file():
            (folder / name).unlink()


def training_sentence(log: Mapping[str, Any]) -> str:
    """A sentence for the model card about the training: its steps, data, facts and scores."""
    steps = max((entry.get("step", 0) for entry in log["history"]), default=0)
    noun = "step" if steps == 1 else "steps"
    data = names_of(log["settings"].get("data") or log["settings"].get("tasks", ()))
    facts = [f"{name.replace('_', ' ')} {value:,}" for name, value in log.items() if type(value) is int]
    if facts:
        data += f" ({', '.join(facts)})"
    return f"Trained for {steps:,} {noun} on {data}; {describe(log)}."


def complete_folder(folder: Path, source: str) -> None:
    """Copy the files that a training does not write from the source of the model to the output folder.

    They are the licence, processors and chat templates (:data:`BESIDE`), and the modules of a sentence encoder.
    """
    from ..conversion import write_modules

    try:
        origin = fetch_model(source)
    except CheckpointError:  # no connection: the model is saved without these files
        return
    source_folders = [origin]
    if (origin.parent / MODULES).is_file():  # the weights of a sentence encoder are in a subfolder
        source_folders.append(origin.parent)
    for source_folder in source_folders:
        for pattern in BESIDE:
            for path in source_folder.glob(pattern):
                if path.is_file() and not (folder / path.name).exists():
                    shutil.copyfile(path, folder / path.name)
    if (origin / MODULES).is_file() and not (folder / MODULES).exists():
        before, after = (read_json_object(path / "config.json") for path in (origin, folder))
        if before.get("architectures") == after.get("architectures"):  # the training added no head
            write_modules(origin, folder)


def plain_scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The scores and counts of a Trainer evaluation, without the prefix "eval_" and without times."""
    named = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
    return {
        name: value
        for name, value in named.items()
        if name in ("loss", "loss_se", "n") or name.endswith("_n") or metric_of(name.removesuffix("_se"))
    }


def metric_of(name: str) -> str | None:
    """The key of :data:`METRICS` in the name of a score, which is ``METRIC`` or ``HEAD_METRIC``; ``None`` for other
    names."""
    matching = [key for key in METRICS if name == key or name.endswith(f"_{key}")]
    return max(matching, key=len, default=None)  # "macro_f1" also ends with "_f1"


def reported_scores(scores: Mapping[str, Any]) -> list[str]:
    """The names of the scores to report: all finite scores in per cent, or else the loss."""
    finite = [name for name, value in scores.items() if isinstance(value, (int, float)) and math.isfinite(value)]
    in_percent = [name for name in finite if metric_of(name)]
    if not in_percent and "loss" in finite:
        return ["loss"]
    return in_percent


def describe(log: Mapping[str, Any]) -> str:
    """The metrics of a log in words, such as "held out (100 rows): accuracy 50.0 % before, 91.2 ± 2.8 % after"."""
    before, after, rows = log["metrics"]["before"], log["metrics"]["after"], log["scored_rows"]

    # Scores, such as "accuracy 50.0 % before, 91.2 ± 2.8 % after"
    sentences = []
    for name in reported_scores(after):
        title, digits, unit = "loss", 3, ""
        key = metric_of(name)
        if key is not None:
            head = name.removesuffix(key).replace("_", " ")
            title, digits, unit = f"{head}{METRICS[key]}", 1, " %"
        text = title
        if before.get(name) is not None:
            text += f" {before[name]:.{digits}f}{unit} before,"
        text += f" {plus_minus(after[name], after.get(f'{name}_se'), digits)}{unit}"
        if name in before:
            text += " after"
        sentences.append(text)

    # Rows, such as "held out (100 rows)"
    where, overlap = "scored", ""
    if rows:
        where = "on the training data"
        if rows["trained"] < rows["n"]:
            where = "held out"
            if rows["trained"]:
                overlap = f", {rows['trained']:,} of them also trained on"
    count = int(after.get("n", 0))
    noun = "row" if count == 1 else "rows"
    return f"{where} ({count:,} {noun}{overlap}): {'; '.join(sentences) or 'no score'}{log.get('note', '')}"


def measured(log: Mapping[str, Any], task: str | None = None) -> list[dict[str, Any]]:
    """The final scores in the form of the argument ``results`` of :func:`~hf_longattn.hub.model_card`.

    ``task`` is the Hub's name of the measured task.
    """
    after, settings, rows = log["metrics"]["after"], log["settings"], log["scored_rows"]
    validation = settings.get("validation", [])
    sources = settings.get("data") or settings.get("tasks", [])
    part = "training data" if rows and rows["trained"] == rows["n"] else "held out"
    results = []
    for name in reported_scores(after):
        metric, unit, head = "loss", log.get("unit", "nats"), ""
        key = metric_of(name)
        if key is not None:
            metric, unit, head = METRICS[key], "%", name.removesuffix(key).strip("_")

        # The data of the score: --validation, or else the training data of the head
        scored = [validation]
        if not isinstance(validation, str):  # NAME=DATA for each head
            scored = [source for source in validation if source.startswith(f"{head}=")]
        data = names_of(scored)
        if not scored:
            trained = [source for source in sources if source.startswith(f"{head}=")]  # NAME=KIND:DATA
            data = f"{names_of(trained or sources)} ({part})"

        results.append(
            {
                "dataset": data,
                "metric": metric,
                "value": after[name],
                "unit": unit,
                "task": task,
                "metric_type": key or "loss",
                "n": after.get(f"{head}_n", after.get("n")),
                "standard_error": after.get(f"{name}_se"),
                "system": f"head {head}" if head else "",
            }
        )
    return results


def names_of(sources: Any) -> str:
    """Names of sources for a model card, separated by commas. Files and folders are named without parent folders."""
    return ", ".join(in_one_line(public_name(source)) for source in sources)
