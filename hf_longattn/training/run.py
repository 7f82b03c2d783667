"""The run of every task: begin, train or resume, evaluate, and save the model with its log and card.

Errors are reported as one sentence.

`docs/extending.md` and ``examples/extend/score.py`` show a task. ``compute_metrics`` (or ``measure=``) returns scores
by name, with ``NAME_se`` for standard errors and ``n`` for the number of rows. Scores with names in :data:`METRICS`
are in per cent. ``HEAD_accuracy`` is the accuracy of one of several heads.
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
"""Files that a run without ``--overwrite`` does not replace."""


def begin(model_args: ModelArguments, data_args: DataArguments, training_args: LongTrainingArguments) -> None:
    """Check the output before anything slow, find the checkpoint to resume from, and set the seed.

    Raises:
        OptionError: the output is the model's folder, or already contains a model, checkpoints or scores.
        CheckpointError: the output cannot be written, or no checkpoint can be resumed.
        HubError: ``push_to_hub`` without access.
    """
    args, folder = training_args, training_args.folder
    data_args.only_scores = not args.do_train
    if folder.exists() and folder.resolve() == Path(model_args.model).resolve():
        raise OptionError(
            f"The output {str(folder)!r} is the folder of --model, which would be overwritten; give another --output."
        )
    if args.do_train and (args.resume or args.resume_from_checkpoint):
        given = args.resume_from_checkpoint
        start = Path(given) if given else newest_checkpoint(folder)
        if start is None or not is_complete(start):
            raise CheckpointError(
                f"There is no complete checkpoint in {str(start or folder)!r} to resume from; leave --resume out."
            )
        args.resume_from_checkpoint, args.eval_on_start = str(start), False
    if not args.overwrite and not resumes_output(args):
        refuse_earlier_results(folder, args.do_train)
    check_writable(folder)
    if args.push_to_hub and not args.do_train:
        raise OptionError(
            "--push-to-hub uploads a model after its training, and nothing is trained here; leave it out."
        )
    if args.push_to_hub:
        check_login(
            str(args.hub_model_id or folder.absolute().name), args.hub_token, private=bool(args.hub_private_repo)
        )
    if args.disable_tqdm or not args.should_log:
        datasets.disable_progress_bars()
        logging.disable_progress_bar()
    transformers.set_seed(args.seed)


def refuse_earlier_results(folder: Path, trains: bool) -> None:
    """Refuse an output that has scores, a model or checkpoints of an earlier run."""
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
    """Train or resume, evaluate, and save model, tokenizer, log and card; push them with ``push_to_hub``.

    The log is written last and in one step, so a folder with a log has a finished training. Without ``do_train``, only
    evaluate and save the scores.

    Args:
        trainer: its arguments are a :class:`LongTrainingArguments`.
        hub_task: the Hub's name of the measured task, if it differs from the head's.
        facts: more entries of the log, as JSON values. The card also has the numbers, and ``note`` after the scores.

    Returns:
        The log: settings, versions, ``metrics`` before and after, the facts and Trainer's history.

    Raises:
        CheckpointError: the disk became full.
        DataError: there are no rows to train on, or none to evaluate on.
        OptionError: LoRA is used with sharded weights, no evaluation has the metric for the best model, or the resumed
            training was begun with another model, other rows or other options.
    """
    args: Any = trainer.args
    sharded, first = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled, trainer.is_world_process_zero()
    refuse_empty(trainer, data_args)
    if first:
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
            if first:
                begin_record(trainer, model_args, data_args)
            trainer.accelerator.wait_for_everyone()
            with low_rank_updates(trainer.model, model_args.lora_rank):
                train(trainer, sharded=sharded)
        with nullcontext() if sharded else unpadded(trainer.model):
            log = scored_log(trainer, model_args, data_args, facts)
        if args.do_train:
            save(trainer, model_args.model, log, hub_task)
        elif first:
            args.folder.mkdir(parents=True, exist_ok=True)
            write_text(args.folder / SCORES_NAME, json.dumps(log, indent=1))
    trainer.accelerator.wait_for_everyone()
    return log


def refuse_empty(trainer: LongTrainer, data_args: DataArguments) -> None:
    """Refuse data of which no row is left."""
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
    """Record in the checkpoints what the training depends on, and compare that with a resumed training's record."""
    args: Any = trainer.args
    record = RunRecord(run_facts(trainer.model, trainer.train_dataset, model_args, data_args))
    if args.resume_from_checkpoint:
        check_same_run(Path(args.resume_from_checkpoint), record.facts)
    trainer.add_callback(record)
    if not resumes_output(args):
        for old in args.folder.glob("checkpoint-*"):  # a later --resume must not find them
            shutil.rmtree(old)


def train(trainer: LongTrainer, *, sharded: bool) -> None:
    """Train or resume. With ``load_best_model_at_end``, the model then has the best checkpoint's weights."""
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
    """Evaluate, and make the log that :func:`finish` returns."""
    args: Any = trainer.args
    before: dict[str, Any] = next(
        (entry for entry in trainer.state.log_history if not entry["step"] and "eval_n" in entry), {}
    )
    metrics = {"before": plain_scores(before), "after": plain_scores(trainer.evaluate())}
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
    start = args.resume_from_checkpoint
    return bool(start) and Path(str(start)).resolve().parent == args.folder.resolve()


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
    """Load a checkpoint as ``from_pretrained`` does, if its weight names differ from the model's parameter names.

    transformers saves a ViT, a mixture of experts and others under older names, which Trainer does not load.
    """
    names: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    if isinstance(model, PreTrainedModel) and not names <= set(model.state_dict()):
        model.load_state_dict(load_weights(type(model), folder, config=model.config, dtype=model.dtype).state_dict())


@contextmanager
def sentence_if_full(folder: Path) -> Iterator[None]:
    """Raise the error for a full disk as one sentence, and remove files of a model and checkpoints that are not
    complete."""
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
    """Refuse a second training into a folder while the first one runs.

    Raises:
        CheckpointError: another training writes into the folder, or it cannot be written.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    existing = new[-1].parent if new else folder
    with disk_errors(existing):
        folder.mkdir(parents=True, exist_ok=True)
    refusal = f"Another training is writing {str(folder)!r}; wait for it, or give another --output."
    try:
        with locked(folder / ".lock", refusal):
            yield
    finally:
        for place in new:  # still empty if the training was refused
            with suppress(OSError):  # not empty
                place.rmdir()


def how_to_resume(folder: Path) -> str:
    """The advice after a run that ended early."""
    newest = newest_checkpoint(folder)
    if newest is None:
        return "run again with --overwrite, since no checkpoint is complete"
    return f"run again with --resume, from {newest}"


def run_task(task: ModuleType, words: list[str], prog: str | None = None) -> int:
    """Run a training or an evaluation from a command line. Only the first of several processes prints.

    Args:
        task: a module with ``ARGUMENTS`` and ``main``; see this module's docstring.
        prog: the command in messages and help, "longattn train qa".

    Returns:
        The exit code: 0, or with one sentence on stderr 1 (refused or failed), 2 (wrong usage) or 130 (interrupted).
    """
    first, folder, code = int(os.environ.get("RANK", "0")) == 0, None, 0
    try:
        model_args, data_args, training_args = parse_task(task, words, prog or str(task.__file__))
        folder = training_args.folder
        writes = first and training_args.do_train
        with only_writer(folder) if writes else nullcontext():
            log = task.main(model_args, data_args, training_args)
        if first:
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
        code = 128 + signal.SIGINT  # as a shell returns it
        if first:
            advice = f"; {how_to_resume(folder)}" if folder else ""
            print(visible(f"Stopped{advice}."), file=sys.stderr)
    if code and torch.distributed.is_available() and torch.distributed.is_initialized():
        sys.stderr.flush()
        os._exit(code)  # destroying a process group without its other processes may hang
    return code


BESIDE_UPDATES = "trained_beside_updates"
"""The attribute that marks other modules to train in full, beside LoRA updates."""


@contextmanager
def low_rank_updates(network: nn.Module, rank: int) -> Iterator[None]:
    """Within the context, train LoRA updates of the attention projections, scaled by 2; merge them on exit.

    Also trained are the mechanisms' parameters, poolers and heads, but no head that predicts tokens.

    ``network`` is a model of transformers, or a module that contains one. With a rank of 0, all weights are trained.
    """
    if not rank:
        yield
        return
    from peft import LoraConfig, get_peft_model

    model = next(module for module in network.modules() if isinstance(module, PreTrainedModel))
    targets: list[Any] = []
    for site in self_attention(model):
        if not (names := attention_projections(model, site.name)):
            raise OptionError(
                f"No query, key and value projections are known in {site.name} ({type(site.module).__name__}), so "
                "LoRA has nothing to update; leave --lora-rank out to train all parameters."
            )
        targets += names
    beside = (
        part
        for name, part in model.named_modules()
        if isinstance(part, Mechanism) or name.endswith("pooler") or hasattr(part, BESIDE_UPDATES)
    )
    trained = [parameter for part in beside for parameter in part.parameters() if parameter.requires_grad]
    if model.get_output_embeddings() is None:
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
"""Name of the file that completes a training."""
BESIDE = ("LICENSE*", "LICENCE*", "NOTICE*", "*processor_config.json", "chat_template*", "*.jinja")
"""Patterns of files to copy from the source, because saving a model and its tokenizer does not write them."""
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
"""Scores in per cent, by their names in a log."""


def save(trainer: LongTrainer, source: str, log: dict[str, Any], hub_task: str | None) -> None:
    """Save model, tokenizer, the source's other files, card and log, and push them.

    The log is written last, and lists all files. Files listed in an earlier log are removed first, so that the model
    does not inherit an old chat template or licence. ``source``: the model that was trained; ``hub_task`` as for
    :func:`~hf_longattn.training.run.finish`.
    """
    args: Any = trainer.args
    folder, first = args.folder, trainer.is_world_process_zero()
    if first:
        remove_listed(folder)
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)  # of a processor
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # remove the settings of the last batch
        backend.no_truncation()
        backend.no_padding()
    others = {path.name for path in folder.iterdir()}
    config: Any = getattr(trainer.accelerator.unwrap_model(trainer.model), "config", None)
    if trainer.use_cache is not None:
        config.use_cache = trainer.use_cache
    elif config is not None:
        vars(config).pop("use_cache", None)
    if trainer.is_fsdp_enabled:  # only checkpoints have a sharded state
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder), _internal_call=True)
    if not first:
        return
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that no user of the model needs
    complete_folder(folder, source)
    card = from_source(source)
    if getattr(trainer, "hub_model_id", None) is not None:
        card["name"] = trainer.hub_model_id
    write_model_card(folder, training=training_sentence(log), results=measured(log, hub_task), **card)
    log["files"] = sorted({path.name for path in folder.iterdir() if path.is_file()} - others)
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
    """Remove an earlier training's log, and the files that it lists."""
    if not (folder / LOG_NAME).is_file():
        return
    names = read_json_object(folder / LOG_NAME).get("files", [])
    (folder / LOG_NAME).unlink()
    for name in names:
        if Path(name).name == name and (folder / name).is_file():
            (folder / name).unlink()


def training_sentence(log: Mapping[str, Any]) -> str:
    """The sentence of a card about a training: steps, data, facts and scores."""
    steps = max((entry.get("step", 0) for entry in log["history"]), default=0)
    noun = "step" if steps == 1 else "steps"
    data = names_of(log["settings"].get("data") or log["settings"].get("tasks", ()))
    facts = [f"{name.replace('_', ' ')} {value:,}" for name, value in log.items() if type(value) is int]
    if facts:
        data += f" ({', '.join(facts)})"
    return f"Trained for {steps:,} {noun} on {data}; {describe(log)}."


def complete_folder(folder: Path, source: str) -> None:
    """Copy files that a training does not save from the model's source: licence, processors, modules of a sentence
    encoder."""
    from ..conversion import write_modules

    try:
        origin = fetch_model(source)
    except CheckpointError:  # no connection: the model is saved without these files
        return
    homes = [origin]
    if (origin.parent / MODULES).is_file():
        homes.append(origin.parent)
    for path in (path for home in homes for pattern in BESIDE for path in home.glob(pattern)):
        if path.is_file() and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    if (origin / MODULES).is_file() and not (folder / MODULES).exists():
        before, after = (read_json_object(each / "config.json") for each in (origin, folder))
        if before.get("architectures") == after.get("architectures"):
            write_modules(origin, folder)


def plain_scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of a Trainer evaluation, without its prefix and its times."""
    named = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
    return {
        name: value
        for name, value in named.items()
        if name in ("loss", "loss_se", "n") or name.endswith("_n") or metric_of(name.removesuffix("_se"))
    }


def metric_of(name: str) -> str | None:
    """The metric of a score by its name, ``METRIC`` or ``HEAD_METRIC``, as a key of :data:`METRICS`; ``None`` for
    other scores."""
    return max((key for key in METRICS if name == key or name.endswith(f"_{key}")), key=len, default=None)


def shown(scores: Mapping[str, Any]) -> list[str]:
    """The names of the scores to report: scores in per cent, or else the loss."""
    numbers = {
        name: value for name, value in scores.items() if isinstance(value, (int, float)) and math.isfinite(value)
    }
    return [name for name in numbers if metric_of(name)] or [name for name in ("loss",) if name in numbers]


def describe(log: Mapping[str, Any]) -> str:
    """The metrics of a log in words, such as "held out (100 rows): accuracy 50.0 % before, 91.2 ± 2.8 % after"."""
    before, after, rows = log["metrics"]["before"], log["metrics"]["after"], log["scored_rows"]
    parts = []
    for name in shown(after):
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
        parts.append(text)
    where, trained = "scored", ""
    if rows:
        where = "on the training data"
        if rows["trained"] < rows["n"]:
            where = "held out"
            if rows["trained"]:
                trained = f", {rows['trained']:,} of them also trained on"
    count = int(after.get("n", 0))
    noun = "row" if count == 1 else "rows"
    return f"{where} ({count:,} {noun}{trained}): {'; '.join(parts) or 'no score'}{log.get('note', '')}"


def measured(log: Mapping[str, Any], task: str | None = None) -> list[dict[str, Any]]:
    """The final scores as ``results`` of :func:`~hf_longattn.hub.model_card`. ``task``: task of the card."""
    after, settings, rows = log["metrics"]["after"], log["settings"], log["scored_rows"]
    validation, sources = settings.get("validation", []), settings.get("data") or settings.get("tasks", [])
    part = "training data" if rows and rows["trained"] == rows["n"] else "held out"
    results = []
    for name in shown(after):
        metric, unit, head = "loss", log.get("unit", "nats"), ""
        key = metric_of(name)
        if key is not None:
            metric, unit, head = METRICS[key], "%", name.removesuffix(key).strip("_")
        scored = [validation]
        if not isinstance(validation, str):  # NAME=DATA for each head
            scored = [each for each in validation if each.startswith(f"{head}=")]
        data = names_of(scored)
        if not scored:
            of_head = [each for each in sources if each.startswith(f"{head}=")] or sources  # NAME=KIND:DATA
            data = f"{names_of(of_head)} ({part})"
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
    """Names of sources for a card: Hub names, and files and folders without their parent folders."""
    return ", ".join(in_one_line(public_name(source)) for source in sources)
