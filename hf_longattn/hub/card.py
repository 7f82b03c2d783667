"""Model cards: from a saved model's config, its conversion report, the card of its source and measured results.

Every command that writes a model fills the same template, ``card.md``.
"""

from __future__ import annotations

import inspect
import json
import re
import shlex
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HTTPError
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers import AutoConfig

from .. import __version__
from ..configuration import LongAttentionConfig
from ..errors import CONTROL, CheckpointError, HubError, checkpoint_errors, in_one_line
from ..files import (
    CONVERSION_REPORT,
    EMBEDDINGS,
    GRAPHS,
    RERANKER,
    TAGS,
    TOKEN_VECTORS,
    check_config,
    check_format,
    is_generic,
    is_long,
    named_class,
    plain_names,
    public_name,
    read_json_object,
    read_text,
    sentence_kind,
    staged_file,
)
from ..inputs.text import kind_in
from ..mechanisms.common.registry import prototype
from ..modeling.family.definition import tower_field
from ..modeling.family.registration import MULTIMODAL_TYPE, auto_class_name
from ..modeling.generic import TOWERS
from .results import MeasuredResult, results_table

TEMPLATE = Path(__file__).with_name("card.md")
TASKS = {
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSeq2SeqLM": "translation",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForDocumentQuestionAnswering": "document-question-answering",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForMultipleChoice": "multiple-choice",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForSemanticSegmentation": "image-segmentation",
    "AutoModelForCTC": "automatic-speech-recognition",
    "AutoModelForSpeechSeq2Seq": "automatic-speech-recognition",
    "AutoModelForAudioClassification": "audio-classification",
}
"""Auto class of a head -> its task, by its name on the Hub. Other heads have no task there."""
AUTO_CLASSES = {**{task: auto for auto, task in TASKS.items()}, "feature-extraction": "AutoModel", "image-feature-extraction": "AutoModel"}
"""Task, by its name on the Hub -> the Auto class that loads models for it."""
INHERITED = ("license", "license_name", "license_link", "language", "datasets", "tags")
"""Metadata that a model takes over from its source. Results are not among them: they were measured on another model."""
LISTED = ("language", "datasets", "tags", "base_model")
"""Fields whose value may be a list."""
FORMATS = frozenset((
    "coreml", "flax", "gguf", "jax", "keras", "mlx", "onnx", "openvino", "pytorch", "rust", "safetensors", "tensorflow", "tf", "tf-keras",
    "tflite", "torch", "transformers",
))  # fmt: skip
"""Tags that name a file format. They describe the source's files, so a converted model does not inherit them."""
SIZES = {
    "image_size": "images of {} to {} pixels",
    "audio_seconds": "sounds of {} to {} seconds",
    "context_length": "series of {} to {} steps",
}
"""Field of a plan, after "old_" and "new_" -> the words for both."""
NEW_TOKENS = 20
"""Tokens that an example generates."""
REMOTE_CODE = (
    "A program that does not import hf_longattn passes `trust_remote_code=True` to `from_pretrained`: a file in this repository imports "
    "hf_longattn, which must be installed."
)
MODEL = "{model}"
"""Placeholder for the model's name in the ``next_step`` of a conversion report."""


def write_model_card(model_dir: str | Path, **contents: Any) -> Path:
    """Write ``README.md`` into a saved model's folder; ``contents`` as for :func:`model_card`.

    The training section and the results of an existing card stay, unless ``contents`` has others: no other file records them.

    Returns:
        The path of the card.

    Raises:
        CheckpointError: as :func:`model_card`, or ``README.md`` is not a regular file.
    """
    path, before = Path(model_dir) / "README.md", {}
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{str(path)!r} is not a regular file; remove it.")
    if path.is_file():
        with suppress(CheckpointError):  # inherited_metadata warns about it
            card = read_card(path)
            sections = dict(re.findall(r"^## (Training|Results)$(.*?)(?=^## |\Z)", card.text, re.MULTILINE | re.DOTALL))
            before = {"training": sections.get("Training", "").strip()}
            if not contents.get("results"):
                before |= {"measured": sections.get("Results", "").strip(), "eval_results": card.data.get("eval_results")}
    card = model_card(model_dir, **{**before, **contents})
    with staged_file(path) as stage:
        card.save(stage)
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
        CheckpointError: the folder has no readable ``config.json``, or a file has values from which no card can be made.
        LongAttentionError: a result is not a finite number.
    """
    folder, name = Path(model_dir), name or str(model_dir)
    config, rows = read_config(folder), [MeasuredResult.of(row) for row in results]
    with checkpoint_errors(f"No card can be made from config.json and {CONVERSION_REPORT} in {str(folder)!r}"):
        report = (read_report(folder) if report is None else report) or {}
        plan = report.get("plan") or {}
        usage = how_to_load(folder, config, name, int(plan.get("new_length") or 0))
        title = in_one_line(title or (folder.resolve().name if name == str(model_dir) else name.rstrip("/").rpartition("/")[2]))

        stated = {"base_model": base_model, "license": license, "language": language, "datasets": datasets, "tags": tags}
        readme = folder / "README.md" if (folder / "README.md").is_file() else None
        converted_from = str(plan.get("source") or "")
        origin = source if source is not None or readme is not None else converted_from
        of_source = inherited_metadata(source_card(origin)) if origin else {}
        of_source.pop("base_model", None)  # the base of the source is not the model's
        metadata = with_inherited(stated, with_inherited(inherited_metadata(readme), of_source))
        stated_tags = {*metadata["tags"]}
        library = {GRAPHS["onnx"]: "onnx", GRAPHS["torch"]: "pytorch"}.get(usage["graph"], "transformers")
        data = ModelCardData(
            **{
                **metadata,
                "tags": sorted(stated_tags.union(TAGS) if is_long(config) else stated_tags.difference(TAGS)) or None,
                "library_name": "sentence-transformers" if usage["sentences"] else library,
                "pipeline_tag": usage["task"],
                "model_name": title,
                "eval_results": [row.to_metadata(usage["task"]) for row in rows if not row.system] or eval_results,
            }
        )

        backbone, length = backbone_of(config), usage["length"]
        attentions = attentions_of(backbone)
        start = f"`{usage['architecture']}`"
        if metadata.get("base_model"):
            start = f"Converted from `{in_one_line(public_name(str(metadata['base_model'])))}`"
        elif converted_from:
            start = f"Converted from {origin_of(converted_from, Path(source or converted_from).expanduser())}"
        step = in_one_line(next_step(report.get("next_step") or {}, name))
        card = ModelCard.from_template(
            data,
            template_path=str(TEMPLATE),
            **usage,
            title=title,
            introduction=introduction or introduce(start, plan, length, attentions),
            remote_code=REMOTE_CODE if "auto_map" in config else "",
            layers=describe_layers(backbone, attentions),
            config=config,
            report=report,
            line=in_one_line,
            next_step=step,
            results=results_table(rows) or measured.strip(),
            training=training.strip(),
            limits=[*kind_in(config).limits(config, attentions, length), *limits],
            versions={"hf_longattn": __version__, **(report.get("versions") or {})},
        )
        text = re.sub(r"\n{3,}", "\n\n", str(card))
        text.encode()  # names may contain bytes that are not UTF-8
        return ModelCard(text)


def how_to_load(folder: Path, config: Mapping[str, Any], name: str, length: int) -> dict[str, Any]:
    """What the template's code needs to load a model as ``name`` and run it once, and the model's task.

    Args:
        length: maximum length in tokens; 0 for that of the config.
    """
    backbone = backbone_of(config)
    length = length or kind_in(backbone).tokens_of(backbone)
    architecture, sentences, ours = named_class(config, "AutoModel"), sentence_kind(folder), is_long(config)
    auto = auto_class_name(SimpleNamespace(model_type=config.get("model_type")), architecture)
    auto = auto or (architecture if architecture.startswith("AutoModel") else "")
    generated = NEW_TOKENS if auto in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM") else 0
    example = kind_in(config).example(folder, config, length - generated)
    task = None if example.task is None else TASKS.get(auto, None if "For" in architecture or "Heads" in architecture else example.task)
    if sentences is not None:
        task = "text-ranking" if sentences == RERANKER else "sentence-similarity"
        sentences = sentences if sentences in (RERANKER, TOKEN_VECTORS) else EMBEDDINGS
    if task == "translation" and not architecture.endswith("MTModel"):  # other models of AutoModelForSeq2SeqLM do many tasks
        task = None
    takes_globals = False
    if auto == "AutoModelForQuestionAnswering" and ours and not is_generic(config) and config.get("question_separator_id") is None:
        attention = LongAttentionConfig.from_dict(config["long_attention"])
        takes_globals = prototype(attention.mechanism, attention.options).traits.takes_globals
    needs_more = auto == "AutoModelForMultipleChoice" or (auto == "AutoModel" and config.get("is_encoder_decoder"))
    readers = [] if example.reader is None else [example.reader[1]]
    return {
        "architecture": architecture,
        "length": length,
        "task": task,
        "graph": None if any(folder.glob("*.safetensors")) else next((file for file in GRAPHS.values() if (folder / file).is_file()), None),
        "sentences": sentences,
        "ours": ours,
        "auto": auto,
        "classes": {*readers, *([auto] if auto else [] if ours else [architecture])},
        "loaded_by": auto or (f"hf_longattn.{architecture}" if ours else architecture),
        "example": example,
        "runs": bool(example.inputs) and not needs_more,
        "takes_globals": takes_globals,
        "new_tokens": NEW_TOKENS,
        "quoted": json.dumps(name, ensure_ascii=CONTROL.search(name) is not None),
    }


def attentions_of(config: Mapping[str, Any]) -> dict[str, LongAttentionConfig]:
    """Tower -> its attention. A model without towers has one entry with an empty name, a short model has none."""
    chosen = config.get("long_attention") or {}
    if chosen and TOWERS not in chosen:
        return {"": LongAttentionConfig.from_dict(chosen)}
    towers = {name: config.get(tower_field(name)) for name in kind_in(config).apart}
    parts = {name: tower["long_attention"] for name, tower in towers.items() if isinstance(tower, dict) and "long_attention" in tower}
    return {name: LongAttentionConfig.from_dict(of_tower) for name, of_tower in (parts or chosen.get(TOWERS, {})).items()}


def describe_layers(config: dict[str, Any], attentions: Mapping[str, LongAttentionConfig]) -> str:
    """The mechanism and options of every layer; empty for a short model."""
    tables = []
    for tower, attention in attentions.items():
        if not tower:
            layers = config.get("num_hidden_layers") or config.get("n_layer") or sum(config.get("depths") or [1])  # of all stages
            tables.append(attention.table(int(layers)))
            continue
        of_model = AutoConfig.for_model(**plain_names(config))
        of_tower = getattr(of_model, tower_field(tower), of_model)  # a tower without its own config uses the model's
        tables.append(f"tower {tower}\n{attention.table(of_tower.num_hidden_layers)}")
    return "\n\n".join(tables)


def introduce(start: str, plan: Mapping[str, Any], length: int, attentions: Mapping[str, LongAttentionConfig]) -> str:
    """The first sentence of a card. What the model is or was made from, what it reads, and its mechanisms."""
    if not attentions:
        return f"{start} for inputs of up to {length:,} tokens."
    grown = f", for inputs of up to {length:,} tokens"
    if plan:
        sizes = []
        for field, words in SIZES.items():
            if plan.get(f"new_{field}"):
                values = (plan[f"old_{field}"], plan[f"new_{field}"])
                sizes.append(words.format(*(" × ".join(map(str, value)) if isinstance(value, list) else f"{value:,g}" for value in values)))
        tokens = f"{plan['old_length']:,} to {length:,} tokens"
        extended = f", extended from {' and '.join(sizes) or tokens}" if plan["new_length"] else ""  # --generic may state no length
        grown = f"{extended} ({f'{tokens}; ' if sizes else ''}positions: {plan['positions']})"
    named = [f"`{attention.mechanism}` attention{f' in the tower {tower}' if tower else ''}" for tower, attention in attentions.items()]
    return f"{start}{grown}, with {' and '.join(named)}, by hf_longattn."


def backbone_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone's config of a multimodal model; for any other model ``config`` itself."""
    text_config = config.get("text_config")
    return dict(text_config if config.get("model_type") == MULTIMODAL_TYPE and isinstance(text_config, dict) else config)


def next_step(step: Mapping[str, Any], name: str) -> str:
    """Shell command or advice on training the model ``name``, from ``next_step`` of its conversion report. Empty if there is none."""
    if step.get("command"):
        return shlex.join(word.replace(MODEL, name) for word in step["command"])
    return (step.get("advice") or "").replace(MODEL, name)


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
    """The report of the conversion that made a folder; empty if there is none."""
    return read_json_object(folder / CONVERSION_REPORT) if (folder / CONVERSION_REPORT).exists() else {}


# What a card takes over from the card of the model's source.


def origin_of(source: str, folder: Path) -> str:
    """A model's name on the Hub, or "a local folder". The latter with the model that it was converted from or is based on.

    Args:
        source: the model, as the user typed it.
        folder: the folder with the model's files. Its name is never published.
    """
    path = Path(source).expanduser()
    cached = [part for part in path.resolve().parts if part.startswith("models--")]
    name = cached[-1].removeprefix("models--").replace("--", "/") if cached and path.is_dir() else source
    if "/" in name and public_name(name) == name:
        return f"`{in_one_line(name)}`"
    made = {"is based on": inherited_metadata(source_card(folder)).get("base_model")}
    with suppress(CheckpointError):  # the report of a source is not needed
        made = {"was converted from": (read_report(folder).get("plan") or {}).get("source"), **made}
    known = {how: base for how, base in made.items() if isinstance(base, str) and "/" in base and public_name(base) == base}
    return "a local folder" + next((f", which {how} `{in_one_line(base)}`" for how, base in known.items()), "")


def source_card(source: str | Path, *, download: bool = False) -> Path | None:
    """Path of the ``README.md`` of a folder, or of a Hub repository in the cache. ``None`` if there is none.

    Args:
        download: request the card of a Hub repository, so that it is in the cache. Errors are ignored: then no metadata is inherited.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder / "README.md" if (folder / "README.md").is_file() else None
    with suppress(OSError, ValueError, HTTPError):
        return Path(hf_hub_download(str(source), "README.md", local_files_only=not download))
    return None


def inherited_metadata(card: Path | None) -> dict[str, Any]:
    """Fields of a ``README.md``'s front matter that are in :data:`INHERITED`. Without tags in :data:`FORMATS`, and with ``base_model``.

    Warns if the card cannot be read, and returns no metadata then. Fields of an unexpected type are left out with a warning.
    """
    if card is None:
        return {}
    try:
        data = read_card(card).data.to_dict()
    except CheckpointError as error:
        warnings.warn(f"{error} No metadata is taken from it.", stacklevel=2)
        return {}
    fields = {}
    for name in (*INHERITED, "base_model"):
        value = data.get(name)
        listed = name in LISTED and isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        if value and not isinstance(value, str) and not listed:
            expected = "text or a list of text" if name in LISTED else "text"
            warnings.warn(f"{str(card)!r} says {name}: {value!r}, which must be {expected}; it is ignored.", stacklevel=2)
        elif value:
            fields[name] = value
    if tags := fields.get("tags"):
        fields["tags"] = [tag for tag in ([tags] if isinstance(tags, str) else tags) if tag.lower() not in FORMATS]
    return fields


def with_inherited(stated: Mapping[str, Any], inherited: Mapping[str, Any]) -> dict[str, Any]:
    """``stated`` completed by ``inherited``. Tags are merged; a stated licence replaces the inherited one, with its name and link."""
    rest = {name: value for name, value in inherited.items() if not (stated.get("license") and name.startswith("license"))}
    merged = {**rest, **{name: value for name, value in stated.items() if value}}
    return {**merged, "tags": sorted({*map(str, inherited.get("tags", [])), *(stated.get("tags") or [])})}


def read_card(path: Path) -> ModelCard:
    """The card in a file.

    Raises:
        CheckpointError: the file or its metadata cannot be read.
    """
    text = read_text(path)
    with checkpoint_errors(f"The metadata of {str(path)!r} cannot be read"):
        card = ModelCard(text, ignore_metadata_errors=False)
        str(card).encode()  # YAML escapes can encode half a surrogate pair
        return card


def from_source(source: str, stated: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Arguments of :func:`model_card` for a model loaded from ``source``. That is the base model or a folder whose card names it."""
    contents = {name: value for name, value in stated.items() if value}
    if not source:
        return contents
    base: Any = source
    card = source_card(source, download=True)
    if Path(source).expanduser().exists():
        base = inherited_metadata(card).get("base_model")
    return {**({"base_model": base} if base else {}), **contents, "source": source}


class ModelCardMixin:
    """Mixin that goes before ``Trainer`` in a class's bases. ``push_to_hub`` then adds the training to the model's card. Trainer itself
    would replace that card.

        class CardTrainer(ModelCardMixin, Trainer): ...

    Licence, language, data sets, tags and ``base_model`` come from the card of the model that was loaded by ``from_pretrained``, unless
    ``push_to_hub`` is given other values. Results and hyperparameters come from the Trainer.
    """

    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> None:
        """Write ``README.md`` into the output folder. Takes the arguments of ``Trainer.create_model_card``.

        Raises:
            HubError: the folder contains no saved model.
        """
        from transformers import Trainer
        from transformers.modelcard import TrainingSummary, make_markdown_table

        if not self.is_world_process_zero():
            return
        folder, source = Path(self.args.output_dir), str(self.model.config.name_or_path)
        if not (folder / "config.json").is_file():
            raise HubError(f"{str(folder)!r} contains no saved model yet, so its card cannot be written; call trainer.save_model() first.")
        signature = inspect.signature(Trainer.create_model_card).bind(self, *args, **kwargs)
        summary = TrainingSummary.from_trainer(*signature.args, **signature.kwargs)
        metadata = summary.create_metadata()
        start = f"Fine-tuned from `{in_one_line(public_name(source))}`" if source else "Trained"
        datasets = metadata.get("datasets") or []
        settings = "\n".join(f"- {name}: {value}" for name, value in (summary.hyperparameters or {}).items())
        card = model_card(
            folder,
            name=self.hub_model_id or str(folder),
            introduction=f"{start}{' on ' * bool(datasets)}{in_one_line(', '.join(datasets))} by transformers' Trainer.",
            training=f"{settings}\n\n{make_markdown_table(summary.eval_lines)}" if summary.eval_lines else settings,
            measured="\n".join(f"- {name}: {value}" for name, value in (summary.eval_results or {}).items()),
            eval_results=model_index_to_eval_results(metadata["model-index"])[1] or None,
            **from_source(source, {name: metadata.get(name) for name in ("license", "language", "datasets", "base_model", "tags")}),
        )
        card.save(folder / "README.md")
