"""Model cards written by code: from the model's own config, the conversion's report and measured results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .. import __version__
from ..configuration import LongAttentionConfig
from ..errors import CheckpointError, LongAttentionError
from ..families import FAMILIES
from ..mechanisms import mechanism_class
from .results import MeasuredResult
from .usage import head_of, usage

TEMPLATE = Path(__file__).with_name("template.md")
REPORT = "conversion_report.json"


def write_model_card(
    model_dir: str | Path,
    *,
    base_model: str | None = None,
    report: dict[str, Any] | None = None,
    results: Iterable[MeasuredResult | dict[str, Any]] = (),
    name: str | None = None,
    title: str | None = None,
    introduction: str | None = None,
    training: str = "",
    limits: Sequence[str] = (),
    license: str | None = None,
    language: str | list[str] | None = None,
    datasets: list[str] | None = None,
    tags: Sequence[str] = (),
) -> Path:
    """Write ``README.md`` into a saved model's folder.

    Args:
        model_dir: a folder with a ``config.json``.
        base_model: the Hub name of the model it was made from; a local folder's name is shown in the text only.
        report: a conversion's report; ``conversion_report.json`` of the folder when not given.
        results: measured rows; those without a ``system`` also go into the metadata (``model-index``).
        name: what a reader types to load the model, a Hub name or a path; the folder as given by default.
        title, introduction, training, limits: text; limits are added to those that the config implies.
        license, language, datasets, tags: the Hub's metadata.

    Returns:
        The path of the card.

    Raises:
        CheckpointError: when the folder has no readable ``config.json``.
        LongAttentionError: when a result is not a finite number, or the metadata does not survive being read back.
    """
    folder = Path(model_dir)
    config = _read_json(folder / "config.json")
    if report is None and (folder / REPORT).exists():
        report = _read_json(folder / REPORT)
    report = report or {}
    plan = report.get("plan", {})
    rows = [MeasuredResult.of(row) for row in results]
    title = title or folder.resolve().name
    architecture = (config.get("architectures") or ["AutoModel"])[0]
    attention = LongAttentionConfig.from_dict(config["long_attention"]) if "long_attention" in config else None
    length = int(plan.get("new_length") or _length(config))
    base = base_model or plan.get("source")
    data = ModelCardData(
        base_model=base_model,
        datasets=datasets,
        language=language,
        library_name="transformers",
        license=license,
        model_name=title,
        pipeline_tag=(head_of(architecture) or (None, None, ""))[1],
        tags=sorted({"long-context", "hf_longattn", *tags}) if attention else sorted(tags) or None,
        eval_results=[row.to_metadata() for row in rows if not row.system] or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        title=title,
        introduction=introduction or _introduction(architecture, base, attention, length, plan),
        architecture=architecture,
        usage=usage(architecture, name or str(model_dir), length, is_long=attention is not None, takes_globals=_takes_globals(attention)),
        layers=attention.table(int(config.get("num_hidden_layers") or config.get("n_layer") or 1)) if attention else "",
        checks=report.get("checks", []),
        tolerance=report.get("tolerance", 1e-4),
        verified_on=report.get("text", ""),
        train_command=(report.get("train_command") or "").replace(str(folder.resolve()), name or folder.name),
        results=_table(rows),
        training=training.strip(),
        limits=[*_limits(attention, length), *limits],
        versions=_versions(report),
    )
    check_metadata(str(card), data)
    path = folder / "README.md"
    card.save(path)
    return path


def check_metadata(text: str, expected: ModelCardData) -> None:
    """Read the card's metadata back, as the Hub does, and compare it with what was meant.

    Raises:
        LongAttentionError: when it cannot be read or differs.
    """
    try:
        found = ModelCard(text, ignore_metadata_errors=False).data.to_dict()
    except ValueError as error:
        raise LongAttentionError(
            f"The card's metadata cannot be read back ({error}); check the names and values given to the card."
        ) from error
    wrong = sorted(key for key, value in expected.to_dict().items() if found.get(key) != value)
    if wrong:
        raise LongAttentionError(
            f"The card's metadata changed when it was read back, in {', '.join(wrong)}; check the values given to the card."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"There is no readable {path.name} in {path.parent}; give the folder of a saved model.") from error


def _length(config: dict[str, Any]) -> int:
    """Tokens that a model of this config takes: the rows of its position table less those that are no positions."""
    family = FAMILIES.get(config.get("model_type", "").removeprefix("long_"))
    counted = max((table.config_value(0) for table in family.position_tables), default=0) if family else 0
    return int(config.get("max_position_embeddings") or config.get("n_positions") or 512) - counted


def _takes_globals(attention: LongAttentionConfig | None) -> bool:
    return attention is not None and mechanism_class(attention.mechanism).takes_globals


def _introduction(architecture: str, base: str | None, attention: LongAttentionConfig | None, length: int, plan: dict[str, Any]) -> str:
    if attention is None:
        return f"`{architecture}` for inputs of up to {length:,} tokens."
    start = f"Converted from `{Path(base).name if Path(base).is_absolute() else base}`" if base else f"`{architecture}`"
    grown = f", extended from {plan['old_length']:,} to {length:,} tokens" if plan else f", for inputs of up to {length:,} tokens"
    positions = f" (positions: {plan['positions']})" if plan else ""
    return f"{start}{grown}{positions}, with `{attention.mechanism}` attention, by hf_longattn."


def _limits(attention: LongAttentionConfig | None, length: int) -> list[str]:
    limits = [f"Inputs of more than {length:,} tokens are refused or must be cut."]
    if attention is not None:
        exact = mechanism_class(attention.mechanism).exact_when
        limits.append(f"`{attention.mechanism}` equals full attention when: {exact}. Otherwise a layer does not see the tokens outside it.")
    return limits


def _table(rows: Sequence[MeasuredResult]) -> str:
    if not rows:
        return ""
    columns = {
        "system": [row.system for row in rows],
        "dataset": [row.dataset for row in rows],
        "metric": [row.metric for row in rows],
        "value": [row.shown for row in rows],
        "n": [f"{row.n:,}" if row.n is not None else "" for row in rows],
        "note": [row.note for row in rows],
    }
    kept = {head: cells for head, cells in columns.items() if any(cells)}
    lines = ["| " + " | ".join(kept) + " |", "|---" * len(kept) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in zip(*kept.values(), strict=True))])


def _versions(report: dict[str, Any]) -> str:
    versions = {"hf_longattn": __version__} | report.get("versions", {})
    return ", ".join(f"{package} {version}" for package, version in versions.items()) + "."
