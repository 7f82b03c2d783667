"""Export of a pre-trained model: half-precision weights, tokenizer, log and a card written from the measured numbers."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_longattn.errors import LongAttentionError
from hf_longattn.hub import write_model_card
from scripts.dev.studies.corpus import PACKAGES, TEST_PACKAGES, VALIDATION_PACKAGES
from scripts.dev.studies.pretraining.data import load_tokenizer
from scripts.dev.studies.pretraining.models import build_model


def export(work_dir: Path, architecture: str, destination: Path, checkpoint: str = "checkpoint.pt", overwrite: bool = False) -> Path:
    """Write a checkpoint of ``work_dir`` as an ordinary transformers folder (fp16 safetensors) and return its path.

    Raises:
        LongAttentionError: no such checkpoint, or the destination exists and ``overwrite`` is false.
    """
    source = work_dir / architecture / checkpoint
    if not source.exists():
        raise LongAttentionError(f"{source} does not exist; train the {architecture} model first")
    if destination.exists() and not overwrite:
        raise LongAttentionError(f"destination {str(destination)!r} exists; choose another or allow it to be overwritten")
    if destination.is_symlink() or (destination.exists() and not _is_checkpoint(destination)):
        raise LongAttentionError(f"{str(destination)!r} is not a checkpoint folder, so it is not overwritten; choose another folder")
    state = torch.load(source, map_location="cpu", weights_only=True)
    tokenizer = load_tokenizer(work_dir)
    model = build_model(architecture, len(tokenizer), state["recipe"]["seed"])
    model.load_state_dict(state["model"])
    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.half().save_pretrained(partial)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(partial)
    _compact(partial / "tokenizer.json")
    lines = _log_until(work_dir / architecture / "log.jsonl", state["progress"]["tokens"])
    (partial / "training_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    description = json.loads((work_dir / "data.json").read_text(encoding="utf-8"))
    write_card(partial, model, state, lines, description, destination.name)
    aside = destination.with_name(destination.name + ".replaced")
    if destination.exists():
        os.replace(destination, aside)
    os.replace(partial, destination)
    shutil.rmtree(aside, ignore_errors=True)
    return destination


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder may be replaced: it is empty, or holds a saved model."""
    return folder.is_dir() and ((folder / "config.json").is_file() or not any(folder.iterdir()))


def write_card(
    folder: Path,
    model: transformers.PreTrainedModel,
    state: dict[str, Any],
    lines: list[dict[str, Any]],
    description: dict[str, Any],
    name: str,
) -> Path:
    """Write the model card; every number comes from the checkpoint, the log or the data's description."""
    config, recipe, progress = model.config, state["recipe"], state["progress"]
    introduction = (
        f"A small `{type(model).__name__}` pre-trained from scratch by "
        "`python -m scripts.dev.studies.pretrain_reference` in a clone of hf_longattn: "
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, {config.num_attention_heads} heads, "
        f"{config.max_position_embeddings} positions, {config.vocab_size:,} byte-level BPE pieces, "
        f"{model.num_parameters() / 1e6:.2f} M parameters, stored in fp16. It is a plain transformers "
        "checkpoint with a short context, meant to be converted to a long one."
    )
    measured = (
        f"{_results(lines)} The packages it is measured on were never seen in training. Masked models predict 15 % of the pieces with "
        f"fixed masks; left-to-right models predict every next piece.\n\n{_curve(lines)}"
    )
    training = (
        f"{progress['tokens'] / 1e6:.1f} million tokens in {progress['step']:,} steps, {progress['seconds'] / 3600:.2f} hours of active "
        f"steps on {platform.machine()} CPU, {os.cpu_count()} cores (Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}). The whole log is in `training_log.jsonl`.\n\n"
        f"Recipe: {', '.join(f'{key} {value}' for key, value in recipe.items() if value is not None)}.\n\n"
        f"### Data\n\n{_data_sentence(description['versions'])} Only the train split was trained on.\n\n"
        f"{_splits_table(description['splits'])}\n\n{_sources_table(description['versions'])}"
    )
    return write_model_card(
        folder,
        name=name,
        introduction=introduction,
        measured=measured,
        training=training,
        limits=["It is too small for any use but tests and demonstrations."],
        license="apache-2.0",
        language="code",
        tags=["python", "reference-checkpoint"],
    )


def _results(lines: list[dict[str, Any]]) -> str:
    final = next((line["evaluation"] for line in reversed(lines) if line.get("event") == "finished"), None)
    if final:
        return (
            f"Held-out loss after training: **{final['loss']:.3f}** nats per predicted piece"
            f" ({final['predictions']:,.0f} predictions in {final['sequences']:,} sequences)."
        )
    held_out = [line for line in lines if "held_out_loss" in line]
    if not held_out:
        return "No held-out loss was measured yet."
    return (
        f"Held-out loss at the last measurement (training not finished): **{held_out[-1]['held_out_loss']:.3f}** nats per predicted piece."
    )


def _curve(lines: list[dict[str, Any]], rows: int = 12) -> str:
    """Return at most ``rows`` evenly spaced measurements and the last one, as a table."""
    measured = [line for line in lines if "held_out_loss" in line]
    chosen = measured[:: max(1, len(measured) // rows)]
    if measured and chosen[-1] is not measured[-1]:
        chosen.append(measured[-1])
    body = [
        f"| {line['tokens'] / 1e6:.1f} | {line['objective']} | {line['train_loss']:.3f} | {line['held_out_loss']:.3f} |" for line in chosen
    ]
    return "\n".join(["| million tokens | objective | training loss | held-out loss |", "|---|---|---|---|", *body])


def _splits_table(splits: dict[str, dict[str, int]]) -> str:
    body = [f"| {name} | {s['documents']:,} | {s['characters']:,} | {s['tokens']:,} |" for name, s in splits.items()]
    return "\n".join(["| split | documents | characters | tokens |", "|---|---|---|---|", *body])


def _compact(path: Path) -> None:
    """Rewrite a JSON file without indentation."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def _data_sentence(versions: dict[str, str]) -> str:
    if "python" not in versions:
        return "The files of a text folder, de-duplicated and split by the hash of their content."
    return (
        "Python source of the standard library and of installed packages, de-duplicated and split by package"
        f" (validation: {', '.join(sorted(VALIDATION_PACKAGES))}; test: {', '.join(sorted(TEST_PACKAGES))}; everything else: train)."
    )


def _sources_table(versions: dict[str, str]) -> str:
    """List what the corpus was read from, with the licence that each installed distribution states."""
    distributions = metadata.packages_distributions()
    body = []
    for package, version in versions.items():
        licence = "PSF-2.0" if package == "python" else ""
        if package in PACKAGES and package in distributions:
            licence = _licence(distributions[package][0])
        body.append(f"| {package} | {version} | {licence} |")
    return "\n".join(["| source | version | licence stated |", "|---|---|---|", *body])


def _licence(distribution: str) -> str:
    """Return the licence expression, else the licence classifiers, else a short licence field of a distribution."""
    info = metadata.metadata(distribution).json
    expression = str(info.get("license_expression", ""))
    classifiers = [line.rpartition("::")[2].strip() for line in info.get("classifier", []) if line.startswith("License ::")]
    field = str(info.get("license", "")).strip().splitlines()
    short = field[0] if field and len(field[0]) < 60 else "see the distribution"
    return expression or ", ".join(classifiers) or short


def _log_until(path: Path, tokens: int) -> list[dict[str, Any]]:
    """Return the log up to ``tokens``; lines that a resumed run repeated are kept once, the later one."""
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line.get("event") == "resumed":
            lines = [kept for kept in lines if kept.get("tokens", 0) <= line["tokens"]]
        lines.append(line)
    return [line for line in lines if line.get("tokens", 0) <= tokens]
