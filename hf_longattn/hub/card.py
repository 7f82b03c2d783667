"""Model cards, made from the model's config, its conversion report and measured results."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig

from .. import __version__
from ..configuration import LongAttentionConfig
from ..errors import CheckpointError, LongAttentionError, in_one_line
from ..files import (
    CONVERSION_REPORT,
    GRAPHS,
    RERANKER,
    TAGS,
    check_config,
    check_format,
    check_types,
    is_long,
    named_class,
    plain_names,
    public_name,
    read_json_object,
    sentence_kind,
    staged_file,
)
from ..inputs.text import kind_in
from ..modeling.family.definition import tower_field
from ..modeling.generic import TOWERS
from ..reports import markdown_table
from .metadata import check_metadata, check_stated, inherited_metadata, read_card, source_card, with_inherited
from .usage import backbone_of, next_step, tokens_of, usage_section

TEMPLATE = Path(__file__).with_name("template.md")
MARK = "<!-- hf_longattn: {}; rendered for the repository when the model is pushed, unless you remove this line -->"
END = "<!-- end -->"
UNNAMED_TASK = "other"
"""Task in the metadata of results if the model's task has no name on the Hub."""
MARKED = re.compile(rf"{re.escape(MARK).replace(re.escape('{}'), '(.*?)')}.*?{END}", re.DOTALL)


def write_model_card(model_dir: str | Path, **contents: Any) -> Path:
    """Write ``README.md`` into a saved model's folder; ``contents`` as for :func:`model_card`.

    Returns:
        The path of the card.

    Raises:
        CheckpointError, LongAttentionError: as :func:`model_card`, or ``README.md`` is not a regular file.
    """
    path = Path(model_dir) / "README.md"
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{str(path)!r} is not a regular file; remove it.")
    card = model_card(model_dir, **{**_existing_fields(path, contents), **contents})
    with staged_file(path) as stage:
        card.save(stage)
    return path


def _existing_fields(readme: Path, contents: Mapping[str, Any]) -> dict[str, Any]:
    """Training section and results of an existing card, as arguments of :func:`model_card`. No other file records them."""
    if not readme.is_file():
        return {}
    try:
        card = read_card(readme)
    except CheckpointError:  # inherited_metadata warns about it
        return {}
    parts = {"training": section(card.text, "Training"), "measured": section(card.text, "Results")}
    if contents.get("results"):
        del parts["measured"]
    else:
        parts["eval_results"] = card.data.get("eval_results")
    return {name: value for name, value in parts.items() if value}


def section(text: str, heading: str) -> str:
    """The text of a card below its ``##`` heading. Empty if the card lacks that heading."""
    match = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return match[1].strip() if match else ""


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
    measured: str = "",
    eval_results: list[EvalResult] | None = None,
) -> ModelCard:
    """The card of a saved model.

    Licence, language, datasets and tags that are not given are inherited from the ``README.md`` of the folder and of the source.

    Args:
        model_dir: a saved model.
        base_model: the Hub name of the model it was made from. Omit it for a local folder.
        source: folder or Hub name of a model whose metadata is inherited; by default, if the folder has no card, the report's source.
        report: the conversion's report; by default the folder's ``conversion_report.json``.
        results: measured results. Results without a ``system`` also go into the metadata (``model-index``).
        name: what a reader types to load the model, a Hub name or a path; by default ``model_dir``.
        title, introduction, training, limits: text. The card lists ``limits`` after the limits that the config implies.
        license, language, datasets, tags: metadata for the Hub.
        measured, eval_results: a table of results in Markdown and its metadata, used if ``results`` is empty.

    Raises:
        CheckpointError: the folder has no readable ``config.json``.
        LongAttentionError: a result is not a finite number, or the metadata cannot be read back.
    """
    folder = Path(model_dir)
    config = read_config(folder)
    report = (read_report(folder) if report is None else report) or {}
    plan = report.get("plan") or {}
    backbone = backbone_of(config)
    attentions = _attentions(backbone)
    architecture, length = named_class(config, "AutoModel"), int(plan.get("new_length") or tokens_of(config))
    title = in_one_line(title or (folder.resolve().name if name is None else name.rstrip("/").rpartition("/")[2]))
    kind = sentence_kind(folder)
    if kind is None:
        head = kind_in(config).head(named_class(config, "AutoModel"))
        task = None if head is None else head.task
    else:
        task = "text-ranking" if kind == RERANKER else "sentence-similarity"
    rows = [row if row.task else dataclasses.replace(row, task=task) for row in map(MeasuredResult.of, results)]
    stated = {"base_model": base_model, "license": license, "language": language, "datasets": datasets, "tags": tags}
    check_stated(stated)
    metadata = with_inherited(stated, _inherited(folder, source, plan.get("source")))
    metadata |= {"model_name": title, "eval_results": [row.to_metadata() for row in rows if not row.system] or eval_results}
    versions = {"hf_longattn": __version__} | (report.get("versions") or {})
    verdict_limits = [UNTRAINED] * bool(report.get("needs_training")) + [UNMEASURED] * (report.get("verdict") == "cannot tell")
    graph = next((library for format, library in LIBRARIES.items() if (folder / GRAPHS[format]).is_file()), "transformers")
    metadata |= {"library_name": graph if kind is None else "sentence-transformers", "pipeline_tag": task}
    stated_tags = {*metadata["tags"]}
    data = ModelCardData(
        **{**metadata, "tags": sorted(stated_tags.union(TAGS) if is_long(config) else stated_tags.difference(TAGS)) or None}
    )
    tables = []
    for tower, attention in attentions.items():
        if not tower:
            layers = backbone.get("num_hidden_layers") or backbone.get("n_layer") or sum(backbone.get("depths") or [1])  # of all stages
            tables.append(attention.table(int(layers)))
            continue
        of_model = AutoConfig.for_model(**plain_names(backbone))
        of_tower = getattr(of_model, tower_field(tower), of_model)  # a tower without its own config uses the model's
        tables.append(f"tower {tower}\n{attention.table(of_tower.num_hidden_layers)}")
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title,
        introduction=introduction or _introduction(architecture, _origin(metadata, source, plan), attentions, length, plan),
        **{f"{part}_part": text for part, text in _parts(folder, config, report, name or str(model_dir), metadata).items()},
        layers="\n\n".join(tables),
        global_tokens=_global_tokens(folder, config),
        checks=[
            {**check, **{key: in_one_line(check[key]) for key in ("name", "status", "detail")}} for check in report.get("checks") or []
        ],
        verified=report.get("verified", True),
        tolerance=report.get("tolerance") or 1e-4,
        verified_on=in_one_line(report.get("text") or ""),
        results=_table(rows) or measured.strip(),
        training=training.strip(),
        limits=[*kind_in(config).limits(config, attentions, length), *verdict_limits, *limits],
        versions=", ".join(f"{package} {version}" for package, version in versions.items()) + ".",
    )
    check_metadata(str(card), data.to_dict())
    return card


def _global_tokens(folder: Path, config: dict[str, Any]) -> str:
    """Description of the tokens that ``config.json`` makes global, apart from the mechanism's options. Empty if there are none."""
    separator, marked = config.get("question_separator_id"), config.get("global_token_ids") or []
    ids = [*([separator] if separator is not None else []), *marked]
    names: dict[Any, Any] = {}
    if ids and (folder / "tokenizer.json").is_file():
        tokenizer = read_json_object(folder / "tokenizer.json")
        vocabulary = (tokenizer.get("model") or {}).get("vocab")
        names = {number: name for name, number in vocabulary.items()} if isinstance(vocabulary, dict) else {}
        names |= {token.get("id"): token.get("content") for token in tokenizer.get("added_tokens") or []}
    named = [in_one_line(str(names.get(number, f"token {number}"))) for number in ids]
    groups = [f"a question before the document, up to the first `{named.pop(0)}`"] if separator is not None else []
    groups += [f"every {', '.join(f'`{name}`' for name in named)}"] if named else []
    return " and ".join(groups)


def with_name(text: str, folder: Path, name: str) -> str:
    """Put another model name into a card. Into its title, its metadata and its marked parts. Other text stays."""
    metadata = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    parts = _parts(folder, read_config(folder), read_report(folder), name, metadata)
    text = MARKED.sub(lambda match: parts.get(match[1], match[0]), text)
    called, title = re.escape(in_one_line(folder.resolve().name)), name.rstrip("/").rpartition("/")[2]
    text = re.sub(rf"^# {called}$", lambda _: f"# {title}", text, count=1, flags=re.MULTILINE)
    return re.sub(rf"^(model_name: |- name: ){called}$", lambda match: match[1] + json.dumps(title), text, count=1, flags=re.MULTILINE)


def _parts(folder: Path, config: dict[str, Any], report: dict[str, Any], name: str, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Part -> its text, for the parts of a card that name the model. Each is enclosed in ``MARK`` and ``END``."""
    length = int((report.get("plan") or {}).get("new_length") or tokens_of(config))
    step = report.get("next_step") or {}
    training = in_one_line(next_step(step, name))
    if training:
        training = f"\n\n```\n{training}\n```" if step.get("command") else f" {training}."
    use = usage_section(folder, config, name, length, metadata)
    heading = "What is marked *needs training*" if report.get("needs_training", True) else "If it needs training"
    parts = {"use": use, "training": training and f"{heading}:{training}"}
    return {part: f"{MARK.format(part)}\n{text}\n{END}" for part, text in parts.items() if text}


def _inherited(folder: Path, source: str | Path | None, converted_from: str | None) -> dict[str, Any]:
    """Metadata that a card inherits from the folder's ``README.md``. Completed by the card of ``source``, but never by its ``base_model``.
    If the folder has no ``README.md`` and ``source`` is ``None``, the card of ``converted_from`` is read instead."""
    of_folder = inherited_metadata(folder / "README.md") if (folder / "README.md").is_file() else None
    named = source if source is not None or of_folder is not None else converted_from
    card = source_card(named) if named is not None else None
    of_source = {} if card is None else {name: value for name, value in inherited_metadata(card).items() if name != "base_model"}
    return of_source if of_folder is None else with_inherited(of_folder, of_source)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a saved model.

    Raises:
        CheckpointError: it cannot be read, or its fields have types that transformers does not write.
    """
    if not (folder / "config.json").exists():
        raise CheckpointError(f"There is no readable config.json in {folder}; give the folder of a saved model.")
    values = read_json_object(folder / "config.json")
    check_format(values)
    check_config(values, str(folder))
    return values


def read_report(folder: Path) -> dict[str, Any]:
    """The report of the conversion that made a folder; empty if there is none.

    Raises:
        CheckpointError: it cannot be read, or a field has a type that a conversion does not write.
    """
    if not (folder / CONVERSION_REPORT).exists():
        return {}
    report = read_json_object(folder / CONVERSION_REPORT)
    check_types(report, {"plan": dict, "checks": list, "next_step": dict}, str(folder / CONVERSION_REPORT))
    return report


def _attentions(config: Mapping[str, Any]) -> dict[str, LongAttentionConfig]:
    """Tower -> its attention. A model without towers has one entry with an empty name, a short model has none."""
    chosen = config.get("long_attention") or {}
    if chosen and TOWERS not in chosen:
        return {"": LongAttentionConfig.from_dict(chosen)}
    towers = {name: config.get(tower_field(name)) for name in kind_in(config).apart}
    parts = {name: tower["long_attention"] for name, tower in towers.items() if isinstance(tower, dict) and "long_attention" in tower}
    return {name: LongAttentionConfig.from_dict(of_tower) for name, of_tower in (parts or chosen.get(TOWERS, {})).items()}


def _introduction(architecture: str, origin: str, attentions: Mapping[str, LongAttentionConfig], length: int, plan: dict[str, Any]) -> str:
    if not attentions:
        return f"`{architecture}` for inputs of up to {length:,} tokens."
    named = " and ".join(
        f"`{attention.mechanism}` attention{f' in the tower {tower}' if tower else ''}" for tower, attention in attentions.items()
    )
    start = f"Converted from {origin}" if origin else f"`{architecture}`"
    grown = f", extended from {plan['old_length']:,} to {length:,} tokens" if plan else f", for inputs of up to {length:,} tokens"
    if plan.get("new_audio_seconds"):
        before, after = (f"{plan[name]:,g}" for name in ("old_audio_seconds", "new_audio_seconds"))
        read = f"sounds of up to {after} seconds ({length:,} frames; its source was trained on up to {before})"
        return f"{start} for {read}, with {named}, by hf_longattn."
    if len(attentions) > 1 and plan.get("new_image_size"):
        before, after = (" × ".join(map(str, plan[size])) for size in ("old_image_size", "new_image_size"))
        grown += f" and from images of {before} to {after} pixels"
    elif plan.get("new_image_size"):
        before, after = (" × ".join(map(str, plan[size])) for size in ("old_image_size", "new_image_size"))
        grown = f", enlarged from images of {before} to {after} pixels ({plan['old_length']:,} to {length:,} tokens)"
    elif plan.get("new_context_length"):
        before, after = (f"{plan[steps]:,}" for steps in ("old_context_length", "new_context_length"))
        grown = f", extended from series of {before} to {after} steps ({plan['old_length']:,} to {length:,} tokens)"
    elif plan and not plan["new_length"]:  # a --generic conversion whose config states no maximum length
        grown = ""
    positions = f" (positions: {plan['positions']})" if plan else ""
    return f"{start}{grown}{positions}, with {named}, by hf_longattn."


def _origin(metadata: Mapping[str, Any], source: str | Path | None, plan: Mapping[str, Any]) -> str:
    """The source of a conversion as text. Empty if neither the metadata nor the report names one.

    A Hub model is given by name, any other source as "a local folder" with the base model that its card names.
    """
    converted = str(plan.get("source") or "")
    if name := metadata.get("base_model") or _hub_name(converted):
        return f"`{in_one_line(public_name(name))}`"
    return _local_folder(source_card(converted if source is None else source)) if converted else ""


def origin_of(source: str, folder: Path) -> str:
    """A model's name on the Hub, or "a local folder". The latter with the model that it was converted from or is based on.

    Args:
        source: the model, as the user typed it.
        folder: the folder with the model's files.
    """
    if name := _hub_name(source):
        return f"`{in_one_line(name)}`"
    converted_from = _hub_name(str((read_report(folder).get("plan") or {}).get("source") or ""))
    if converted_from:
        return f"a local folder, which was converted from `{in_one_line(converted_from)}`"
    return _local_folder(source_card(folder))


def _local_folder(card: Path | None) -> str:
    """The text "a local folder", with the base model that its card names. The folder's own name is never published."""
    base = None if card is None else inherited_metadata(card).get("base_model")
    named = base if isinstance(base, str) and public_name(base) == base else ""
    return "a local folder" + (f", which is based on `{in_one_line(named)}`" if named else "")


def _hub_name(source: str) -> str:
    """Name of a repository that is given by name or cached folder. Empty for other folders."""
    path = Path(source).expanduser()
    cached = [part for part in path.resolve().parts if part.startswith("models--")]
    if cached and path.is_dir():
        return cached[-1].removeprefix("models--").replace("--", "/")
    return source if "/" in source and public_name(source) == source else ""


LIBRARIES = {"onnx": "onnx", "torch": "pytorch"}
"""Format of a graph -> the Hub's name of the library that loads it."""
UNTRAINED = "As converted, its outputs differ from those of its source: train it before use, as described above."
UNMEASURED = "Whether it is ready to use as converted is not known; what would tell is in the table of checks above."


def _table(rows: Sequence[MeasuredResult]) -> str:
    columns = {
        "system": [row.system or "this model" for row in rows] if any(row.system for row in rows) else [],
        "dataset": [row.dataset for row in rows],
        "metric": [row.metric for row in rows],
        "value": [row.shown for row in rows],
        "n": [f"{row.n:,}" if row.n is not None else "" for row in rows],
        "note": [row.note for row in rows],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    return markdown_table([*filled], zip(*filled.values(), strict=True)) if rows else ""


@dataclasses.dataclass(frozen=True)
class MeasuredResult:
    """One measured number.

    Attributes:
        dataset: readable name, for example "lookup, documents of 1,025 to 2,048 tokens".
        metric: readable name, for example "exact match".
        value: finite; in ``unit``.
        unit: "%", "s", "nats", or "" for a plain number.
        task: the Hub's task name, for example "question-answering"; ``None``: the model's task.
        dataset_type: identifier in the metadata; made from ``dataset`` when empty.
        metric_type: identifier in the metadata; made from ``metric`` when empty.
        system: name of the measured system, if a table compares several. Results with a system do not go into the metadata.
        n: number of examples. standard_error: in ``unit``. split: of the dataset. note: a few words.
    """

    dataset: str
    metric: str
    value: float
    unit: str = ""
    task: str | None = None
    dataset_type: str = ""
    metric_type: str = ""
    system: str = ""
    n: int | None = None
    standard_error: float | None = None
    split: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.value, int | float) and math.isfinite(self.value)):
            raise LongAttentionError(f"The result {self.metric!r} on {self.dataset!r} is {self.value!r}, but must be a finite number.")

    @classmethod
    def of(cls, row: MeasuredResult | dict[str, Any]) -> MeasuredResult:
        """``row`` itself, or a MeasuredResult made from a dict of its attributes."""
        if isinstance(row, MeasuredResult):
            return row
        try:
            return cls(**row)
        except TypeError as error:
            known = ", ".join(field.name for field in dataclasses.fields(cls))
            raise LongAttentionError(
                f"A result row has the fields {sorted(row)}, but takes {known} (the first three are required)."
            ) from error

    @property
    def shown(self) -> str:
        """The value with its unit and standard error."""
        number = f"{self.value:,.3g}" if abs(self.value) < 100 else f"{self.value:,.0f}"
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        return f"{number}{error}{' ' * bool(self.unit)}{self.unit}"

    def to_metadata(self) -> EvalResult:
        """The entry of the card's ``model-index``."""
        return EvalResult(
            task_type=self.task or UNNAMED_TASK,
            dataset_type=self.dataset_type or _slug(self.dataset),
            dataset_name=self.dataset,
            dataset_split=self.split,
            metric_type=self.metric_type or _slug(self.metric),
            metric_name=self.metric,
            metric_value=self.value,
        )


def _slug(text: str) -> str:
    words = "".join(character if character.isalnum() else " " for character in text.lower()).split()
    return "_".join(words)
