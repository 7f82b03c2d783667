"""What a run leaves: the model with its tokenizer, the source's other files, the scores in words and in the card, and the log."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_longattn.errors import CheckpointError, in_one_line
from hf_longattn.evaluation.summaries import plus_minus
from hf_longattn.files import MODULES, public_name, read_json_object, write_text
from hf_longattn.hub import from_source, push_model, write_model_card
from hf_longattn.loading import fetch_model
from hf_longattn.training.trainer import LongTrainer

LOG_NAME = "training_log.json"
"""The last file of a training."""
BESIDE = ("LICENSE*", "LICENCE*", "NOTICE*", "*processor_config.json", "chat_template*", "*.jinja")
"""Files of a source that are not written when a model and its tokenizer are saved."""
METRICS = {
    "exact_match": "exact match", "f1": "F1", "accuracy": "accuracy",
    "macro_f1": "macro F1", "precision": "precision", "recall": "recall", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum", "accuracy_at_1": "right document first", "mrr": "MRR@10", "ndcg": "nDCG@10",
    "spearman": "Spearman correlation", "pearson": "Pearson correlation", "wer": "word error rate",
    "cer": "character error rate", "attention_error": "squared error of attention",
}  # fmt: skip
"""Scores in per cent, by their names in a log."""


def save(trainer: LongTrainer, source: str, log: dict[str, Any], hub_task: str | None) -> None:
    """Save model, tokenizer, the source's other files, card and log, and push them.

    The log is written last, and names all files. Files that an earlier log names are removed first: the model could inherit a chat template
    or a licence. ``source`` is the model that was trained; ``hub_task`` as for :func:`~hf_longattn.training.run.finish`.
    """
    args: Any = trainer.args
    folder, first = args.folder, trainer.is_world_process_zero()
    if first and (folder / LOG_NAME).is_file():
        names = read_json_object(folder / LOG_NAME).get("files", [])
        for name in (LOG_NAME, *(name for name in names if Path(name).name == name and (folder / name).is_file())):
            (folder / name).unlink()
    tokenizer = getattr(getattr(trainer.processing_class, "tokenizer", trainer.processing_class), "backend_tokenizer", None)
    if tokenizer is not None:  # of the last batch
        tokenizer.no_truncation()
        tokenizer.no_padding()
    others = {path.name for path in folder.iterdir()}
    config: Any = getattr(trainer.accelerator.unwrap_model(trainer.model), "config", None)
    if trainer.use_cache is not None:
        config.use_cache = trainer.use_cache
    elif config is not None:
        vars(config).pop("use_cache", None)
    if trainer.is_fsdp_enabled:  # a sharded state is for checkpoints
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder), _internal_call=True)
    if not first:
        return
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that no user of the model needs
    complete_folder(folder, source)
    steps = max((entry.get("step", 0) for entry in log["history"]), default=0)
    facts = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in log.items() if type(value) is int)
    sources = log["settings"].get("data") or log["settings"].get("tasks", ())
    trained = f"{steps:,} step{'s' * (steps != 1)} on {names_of(sources)}{facts and f' ({facts})'}. {describe(log)}."
    contents = {"training": f"Fine-tuned from `{in_one_line(public_name(source))}`: {trained}", "results": measured(log, hub_task)}
    repository = {} if getattr(trainer, "hub_model_id", None) is None else {"name": trainer.hub_model_id}
    write_model_card(folder, **contents, **from_source(source), **repository)
    log["files"] = sorted({path.name for path in folder.iterdir() if path.is_file()} - others)
    write_text(folder / LOG_NAME, json.dumps(log, indent=1))
    if args.push_to_hub:
        access = {"token": args.hub_token, "private": bool(args.hub_private_repo)}
        push_model(folder, str(trainer.hub_model_id), revision=args.hub_revision, **access)


def complete_folder(folder: Path, source: str) -> None:
    """Add the files of a model's source that a training does not save: licence, processors, and the modules of a sentence encoder."""
    from hf_longattn.conversion import write_modules

    try:
        place = fetch_model(source)
    except CheckpointError:  # no connection: the model is saved without these files
        return
    for home in (place, place.parent) if (place.parent / MODULES).is_file() else (place,):
        for path in (path for pattern in BESIDE for path in home.glob(pattern) if path.is_file()):
            if not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
    if (place / MODULES).is_file() and not (folder / MODULES).exists():
        before, after = (read_json_object(each / "config.json") for each in (place, folder) if (each / "config.json").is_file())
        if before.get("architectures") == after.get("architectures"):
            write_modules(place, folder)


def plain_scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of a Trainer evaluation, without its prefix and its times."""
    named = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
    names = (name for name in named if name in ("loss", "loss_se", "n") or name.endswith("_n") or metric_of(name.removesuffix("_se")))
    return {name: named[name] for name in names}


def metric_of(name: str) -> str | None:
    """The key of :data:`METRICS` that a score's name is or ends with; ``None`` for other scores."""
    return max((key for key in METRICS if name == key or name.endswith(f"_{key}")), key=len, default=None)


def shown(scores: Mapping[str, Any]) -> list[str]:
    """The names of the scores to report: those in per cent, or the loss where there is none."""
    names = [name for name, value in scores.items() if metric_of(name) and isinstance(value, (int, float)) and math.isfinite(value)]
    return names or [name for name in ("loss",) if math.isfinite(scores.get("loss", math.nan))]


def describe(log: Mapping[str, Any]) -> str:
    """The metrics of a log in words: "held out (100 rows): accuracy 50.0 % before, 91.2 ± 2.8 % after"."""
    before, after, rows = log["metrics"]["before"], log["metrics"]["after"], log["scored_rows"]
    parts = []
    for name in shown(after):
        key = metric_of(name)
        head, digits, unit = (name[: -len(key)].replace("_", " "), 1, " %") if key else ("", 3, "")
        text = f"{head}{METRICS[key] if key else 'loss'} "
        if before.get(name) is not None:
            text += f"{before[name]:.{digits}f}{unit} before, "
        parts.append(f"{text}{plus_minus(after[name], after.get(f'{name}_se'), digits)}{unit}{' after' if name in before else ''}")
    where = "held out" if rows and rows["trained"] < rows["n"] else "on the training data" if rows else "scored"
    trained = f", {rows['trained']:,} of them also trained on" if rows and 0 < rows["trained"] < rows["n"] else ""
    count = int(after.get("n", 0))
    return f"{where} ({count:,} row{'s' * (count != 1)}{trained}): {'; '.join(parts) or 'no score'}{log.get('note', '')}"


def measured(log: Mapping[str, Any], task: str | None = None) -> list[dict[str, Any]]:
    """The final scores as results of the card, whose task is ``task`` (:func:`~hf_longattn.hub.model_card`)."""
    after, settings, results = log["metrics"]["after"], log["settings"], []
    validation, rows, sources = settings.get("validation", []), log["scored_rows"], settings.get("data") or settings.get("tasks", [])
    part = "training data" if rows and rows["trained"] == rows["n"] else "held out"
    for name in shown(after):
        key = metric_of(name)
        metric, unit, head = (METRICS[key], "%", name[: -len(key)].strip("_")) if key else ("loss", log.get("unit", "nats"), "")
        scored = [validation] if isinstance(validation, str) else [each for each in validation if each.startswith(f"{head}=")]
        of_head = [each for each in sources if each.startswith(f"{head}=")] or sources  # NAME=KIND:DATA
        data = names_of(scored) if scored else f"{names_of(of_head)} ({part})"
        row = {"dataset": data, "metric": metric, "value": after[name], "unit": unit, "task": task, "metric_type": key or "loss"}
        row |= {"n": after.get(f"{head}_n", after.get("n")), "standard_error": after.get(f"{name}_se")}
        results.append({**row, "system": f"head {head}" if head else ""})
    return results


def names_of(sources: Any) -> str:
    """Names on the Hub, and files and folders without their parents."""
    return ", ".join(in_one_line(public_name(source)) for source in sources)
