"""Model cards written by code: from the model's own config, the conversion's report and measured results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .. import __version__
from ..configuration import LongAttentionConfig
from ..errors import CheckpointError
from ..mechanisms import mechanism_class
from ..naming import TAGS
from .inheritance import check_metadata, inherited_metadata, source_card, with_inherited
from .results import MeasuredResult
from .usage import (
    ADAPTER,
    SENTENCE_MODULES,
    class_to_load,
    generic_usage,
    head_of,
    marks_question,
    remote_usage,
    sentence_usage,
    tokens_of,
    usage,
)

TEMPLATE = Path(__file__).with_name("template.md")
REPORT = "conversion_report.json"


def write_model_card(model_dir: str | Path, **contents: Any) -> Path:
    """Write ``README.md`` into a saved model's folder; ``contents`` as for :func:`model_card`.

    Returns:
        The path of the card.

    Raises:
        CheckpointError, LongAttentionError: as :func:`model_card`.
    """
    path = Path(model_dir) / "README.md"
    model_card(model_dir, **contents).save(path)
    return path


def model_card(
    model_dir: str | Path,
    *,
    base_model: str | None = None,
    source: str | Path | None = None,
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
) -> ModelCard:
    """The card of a saved model.

    Licence, language, datasets and tags are taken over from the card of the model that it was made from, as far as they are not given:
    from a ``README.md`` that the folder has already, else from that of the source.

    Args:
        model_dir: a folder with a ``config.json``.
        base_model: the Hub name of the model it was made from; a local folder's name is shown in the text only.
        source: the folder or Hub name of the model it was made from, for its card; the report's by default.
        report: a conversion's report; ``conversion_report.json`` of the folder when not given.
        results: measured rows; those without a ``system`` also go into the metadata (``model-index``).
        name: what a reader types to load the model, a Hub name or a path; the folder as given by default.
        title, introduction, training, limits: text; limits are added to those that the config implies.
        license, language, datasets, tags: the Hub's metadata.

    Raises:
        CheckpointError: when the folder has no readable ``config.json``.
        LongAttentionError: when a result is not a finite number, or the metadata does not survive being read back.
    """
    folder = Path(model_dir)
    config = read_json(folder / "config.json")
    if report is None and (folder / REPORT).exists():
        report = read_json(folder / REPORT)
    report = report or {}
    plan = report.get("plan", {})
    rows = [MeasuredResult.of(row) for row in results]
    given = {"base_model": base_model, "license": license, "language": language, "datasets": datasets, "tags": tags}
    metadata = with_inherited(given, _inherited(folder, source or plan.get("source")))
    title = title or (folder.resolve().name if name is None else name.rstrip("/").rpartition("/")[2])
    architecture = (config.get("architectures") or ["AutoModel"])[0]
    attention = LongAttentionConfig.from_dict(config["long_attention"]) if "long_attention" in config else None
    length = int(plan.get("new_length") or tokens_of(config))
    base = metadata.get("base_model") or (_called(plan["source"]) if plan.get("source") else None)
    called, loaded, adapted = name or str(model_dir), class_to_load(folder, architecture), (folder / ADAPTER).is_file()
    inherited = {*metadata.pop("tags")}
    sentences = (folder / SENTENCE_MODULES).is_file()
    own: dict[str, Any] = {
        "library_name": "sentence-transformers" if sentences else "transformers",
        "model_name": title,
        "pipeline_tag": "sentence-similarity" if sentences else (head_of(loaded) or (None, None, ""))[1],
        "tags": sorted(inherited.union(TAGS) if attention else inherited.difference(TAGS)) or None,
        "eval_results": [row.to_metadata() for row in rows if not row.system] or None,
    }
    data = ModelCardData(**metadata, **own)
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        title=title,
        introduction=introduction or _introduction(architecture, base, attention, length, plan),
        architecture=architecture,
        is_long=attention is not None,
        usage=generic_usage(config, called)
        or (sentence_usage(called) if sentences else None)
        or usage(
            loaded,
            called,
            length,
            is_long=attention is not None,
            takes_globals=_takes_globals(attention) and not marks_question(config),
            adapted=adapted,
        ),
        remote_usage=remote_usage(folder, config, called, length) if attention is not None and config.get("auto_map") else "",
        layers=attention.table(int(config.get("num_hidden_layers") or config.get("n_layer") or 1)) if attention else "",
        checks=report.get("checks", []),
        verified=report.get("verified", True),
        tolerance=report.get("tolerance", 1e-4),
        verified_on=report.get("text", ""),
        train_command=(report.get("train_command") or "").replace(report.get("destination") or str(folder.resolve()), name or folder.name),
        results=_table(rows),
        training=training.strip(),
        limits=[*_limits(attention, length, bool(report.get("needs_training"))), *limits],
        versions=_versions(report),
    )
    check_metadata(str(card), data.to_dict())
    return card


def _inherited(folder: Path, source: str | Path | None) -> dict[str, Any]:
    """From the folder's own card, else from its source's, whose base is not this model's."""
    if (folder / "README.md").is_file():
        return inherited_metadata(folder / "README.md")
    card = source_card(source) if source is not None else None
    return {} if card is None else {name: value for name, value in inherited_metadata(card).items() if name != "base_model"}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model.

    Raises:
        CheckpointError: there is none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"There is no readable {path.name} in {path.parent}; give the folder of a saved model.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{str(path)!r} must hold a JSON object, but holds {type(values).__name__}.")
    return values


def _takes_globals(attention: LongAttentionConfig | None) -> bool:
    return attention is not None and mechanism_class(attention.mechanism).takes_globals


def _introduction(architecture: str, base: str | None, attention: LongAttentionConfig | None, length: int, plan: dict[str, Any]) -> str:
    if attention is None:
        return f"`{architecture}` for inputs of up to {length:,} tokens."
    start = f"Converted from `{Path(base).name if Path(base).is_absolute() else base}`" if base else f"`{architecture}`"
    grown = f", extended from {plan['old_length']:,} to {length:,} tokens" if plan else f", for inputs of up to {length:,} tokens"
    if plan and not plan["new_length"]:  # of a plain class that does not say
        grown = ""
    positions = f" (positions: {plan['positions']})" if plan else ""
    return f"{start}{grown}{positions}, with `{attention.mechanism}` attention, by hf_longattn."


def _called(source: str) -> str:
    """How a text calls a source: a folder by its name, one in the Hub's cache by that of its repository."""
    path = Path(source).expanduser()
    if not path.is_absolute() and not path.is_dir():
        return source.rstrip("/")
    cached = [part for part in path.resolve().parts if part.startswith("models--")]
    return cached[-1].removeprefix("models--").replace("--", "/") if cached else path.resolve().name


def _limits(attention: LongAttentionConfig | None, length: int, needs_training: bool) -> list[str]:
    limits = [f"Inputs of more than {length:,} tokens are refused or must be cut."]
    if attention is not None:
        exact = mechanism_class(attention.mechanism).exact_when
        limits.append(f"`{attention.mechanism}` equals full attention when: {exact}. Otherwise a layer does not see the tokens outside it.")
    if needs_training:
        limits.append("As converted, it does not give what its source gave: train it before use, as said above.")
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
