"""Model cards: from a saved model's config, its conversion report, the card of its source and measured results.

Every command that writes a model fills the same template, ``card.md``.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HTTPError
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from .. import __version__
from ..configuration import LongAttentionConfig
from ..errors import CONTROL, CheckpointError, LongAttentionError, checkpoint_errors, in_one_line
from ..files import (
    CONVERSION_REPORT,
    EMBEDDINGS,
    GRAPHS,
    LARGEST_CARD,
    RERANKER,
    TAGS,
    TOKEN_VECTORS,
    is_generic,
    is_long,
    named_class,
    public_name,
    read_json_object,
    read_text,
    sentence_class,
    staged_file,
)
from ..loading import read_config
from ..mechanisms.common.registry import prototype
from ..mechanisms.common.shared_options import is_full
from ..modeling.family.definition import Family, length_before_conversion, tower_field
from ..modeling.family.input_spec import PLAIN_TEXT, Example, InputSize, InputSpec
from ..modeling.family.registration import MULTIMODAL_TYPE, auto_class_name
from ..modeling.family.rotary import positions_without_end
from ..modeling.family.towers_spec import TOWERS
from ..modeling.generic import family_in

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
AUTO_CLASSES = {
    **{task: auto for auto, task in TASKS.items()},
    "feature-extraction": "AutoModel",
    "image-feature-extraction": "AutoModel",
}
"""Task, by its name on the Hub -> the Auto class that loads models for it."""
INHERITED = ("license", "license_name", "license_link", "language", "datasets", "tags", "base_model")
"""Metadata that a model takes over from its source. Its results are those of another model."""
FORMATS = frozenset(
    (
        "coreml",
        "flax",
        "gguf",
        "jax",
        "keras",
        "mlx",
        "onnx",
        "openvino",
        "pytorch",
        "rust",
        "safetensors",
        "tensorflow",
        "tf",
        "tf-keras",
        "tflite",
        "torch",
        "transformers",
    )
)
"""Tags that name a file format. They describe the source's files, so a converted model does not inherit them."""
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST_METADATA, LONGEST_NUMBER, MOST_TAGS = 50, 1000, 1000
"""Maximum nesting of a card's metadata, characters of a word without a space in it, and number of tags, whose pairs
huggingface_hub compares."""
NEW_TOKENS = 20
"""Tokens that a card's example generates."""
LIBRARIES: dict[str | None, str] = {GRAPHS["onnx"]: "onnx", GRAPHS["torch"]: "pytorch"}
"""File name of a graph -> its library, by its name on the Hub."""
REMOTE_CODE = (
    "A program that does not import hf_longattn passes `trust_remote_code=True` to `from_pretrained`: a file in this "
    "repository imports hf_longattn, which must be installed."
)


def write_model_card(model_dir: str | Path, **contents: Any) -> Path:
    """Write ``README.md`` into a saved model's folder; ``contents`` as for :func:`model_card`. Returns its path.

    Licence, language, data sets and tags of an existing card are preserved.

    Raises:
        CheckpointError: as :func:`model_card`, or the file cannot be written.
    """
    path, card = Path(model_dir) / "README.md", model_card(model_dir, **contents)
    with staged_file(path) as stage:
        card.save(stage)
    return path


def model_card(
    model_dir: str | Path,
    *,
    base_model: str | None = None,
    source: str | Path | None = None,
    report: Mapping[str, Any] | None = None,
    results: Iterable[Mapping[str, Any]] = (),
    name: str | None = None,
    introduction: str | None = None,
    training: str = "",
    **metadata: Any,
) -> ModelCard:
    """The card of a saved model.

    Args:
        model_dir: a saved model.
        base_model: the Hub name of the model it was made from. Omit it for a local folder.
        source: folder or Hub name of a model whose metadata is inherited; by default, without a card, the report's
            source.
        report: the conversion's report; by default the folder's ``conversion_report.json``.
        results: measured results, each with ``dataset`` and ``metric``, which are readable names ("exact match"), and
            a finite ``value``; perhaps with ``unit`` ("%", "s", "nats"), ``n`` (the number of examples),
            ``standard_error``, ``split``, ``task`` (by its name on the Hub; default: the model's) and ``metric_type``.
            Results with a ``system`` are compared in the table, and left out of the metadata (``model-index``).
        name: Hub name or path from which readers load the model; by default ``model_dir``.
        introduction: text in place of the first sentence.
        training: text on the training.
        metadata: license, language, datasets, tags or other fields of ``ModelCardData``. Those of :data:`INHERITED`
            that are not given come from the cards of the folder and of the source.

    Raises:
        CheckpointError: the folder has no readable ``config.json``, or a file has values from which no card can be
            made.
        LongAttentionError: a result is not a finite number.
    """
    folder, name = Path(model_dir), name or str(model_dir)
    config = read_config(folder)
    report = dict(read_report(folder) if report is None else report)
    with checkpoint_errors(
        f"No card of {str(folder)!r} can be made from its config.json, its {CONVERSION_REPORT} and these results"
    ):
        rows = list(results)
        plan = report.get("plan") or {}
        backbone, text_config = config, config.get("text_config")
        if config.get("model_type") == MULTIMODAL_TYPE and isinstance(text_config, dict):
            backbone = text_config  # what a multimodal model reads
        family, spec, typed_config = family_in(backbone), PLAIN_TEXT, SimpleNamespace(**backbone)
        if family is not None:
            spec, typed_config = family.spec, family.config_class.from_dict(dict(backbone))
        length = int(plan.get("new_length") or spec.sizes(family, typed_config).new.tokens)
        loading = Loading.of(folder, config, length, partial(spec.example, folder, typed_config))
        attentions = attentions_of(backbone, family)

        converted_from = str(plan.get("source") or "")
        if source is None and not (folder / "README.md").is_file():
            source = converted_from
        metadata = loading.metadata(folder, {"base_model": base_model, **metadata}, source)
        base, made = metadata.get("base_model"), f"`{loading.architecture}`"
        if isinstance(base, str):
            verb = "Fine-tuned" if training else "Converted"
            made = f"{verb} from `{in_one_line(public_name(base))}`"
        elif converted_from:
            made = f"Converted from {origin_of(converted_from)}"
        title = in_one_line(Path(name).resolve().name)
        data = ModelCardData(**metadata, model_name=title, eval_results=evaluations(rows, loading.task) or None)
        card = ModelCard.from_template(
            data,
            str(Path(__file__).with_name("card.md")),
            **vars(loading),
            title=title,
            introduction=introduction,
            made=made,
            plan=plan,
            length=length,
            old_length=length_before_conversion(typed_config),
            attentions=attentions,
            takes_globals=takes_global_tokens(config, attentions),
            new_tokens=NEW_TOKENS,
            config=config,
            report=report,
            rows=rows,
            training=training.strip(),
            line=in_one_line,
            quoted=json.dumps(name, ensure_ascii=CONTROL.search(name) is not None),
            remote_code=REMOTE_CODE if "auto_map" in config else "",
            layers={tower: layer_count(typed_config, tower) for tower in attentions},
            next_step=in_one_line(next_step(report.get("next_step") or {}, name)),
            limits=limits_of(family, typed_config, attentions),
            versions={"hf_longattn": __version__, **(report.get("versions") or {})},
        )
        text = re.sub(r"\n{3,}", "\n\n", str(card))
        text.encode()  # names may contain bytes that are not UTF-8
        return ModelCard(text)


@dataclass(frozen=True)
class Loading:
    """How a card's code loads a model, and runs it once.

    auto: the Auto class that loads it; empty if there is none.
    sentences: class of sentence-transformers that loads it; ``None`` for other models.
    graph: file name of an exported graph, if the folder has no other weights.
    ours: whether it is a Long model.
    task, library: their names on the Hub.
    """

    architecture: str
    auto: str
    sentences: str | None
    graph: str | None
    ours: bool
    example: Example
    task: str | None
    library: str

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any], length: int, example_of: Callable[[int], Example]) -> Loading:
        """The loading of a saved model that reads ``length`` tokens. ``example_of`` makes its example for a length."""
        architecture = named_class(config, "AutoModel")
        auto = auto_class_name(SimpleNamespace(model_type=config.get("model_type")), architecture) or ""
        if not auto and architecture.startswith("AutoModel"):
            auto = architecture
        if auto == "AutoModelForCausalLM":
            length -= NEW_TOKENS
        example = example_of(length)
        graph = None
        if not any(folder.glob("*.safetensors")):
            graph = next((file for file in GRAPHS.values() if (folder / file).is_file()), None)
        sentences = sentence_class(folder)
        if sentences is None:
            library = LIBRARIES.get(graph, "transformers")
            task = example.task  # of a model without a head; None if cards for this kind of input name no task
            if task is not None:
                if "For" in architecture or "Heads" in architecture:
                    task = None
                # an encoder-decoder may be trained for any task; of these, only Marian's are all for translation
                for_many_tasks = auto == "AutoModelForSeq2SeqLM" and not architecture.endswith("MTModel")
                if not for_many_tasks:
                    task = TASKS.get(auto, task)
        else:
            task = "text-ranking" if sentences == RERANKER else "sentence-similarity"
            library = "sentence-transformers"
            if sentences not in (RERANKER, TOKEN_VECTORS):
                sentences = EMBEDDINGS
        return cls(architecture, auto, sentences, graph, is_long(config), example, task, library)

    def metadata(self, folder: Path, stated: Mapping[str, Any], source: str | Path | None) -> dict[str, Any]:
        """The card's metadata: ``stated`` fields, then those of the folder's card, then those of the source's."""
        inherited = inherited_metadata(source) if source else {}
        inherited.pop("base_model", None)  # the source's, not this model's
        if self.auto in TASKS and self.sentences is None:
            tags_of_source = inherited.get("tags", ())
            inherited["tags"] = [tag for tag in tags_of_source if not tag.startswith(("sentence-", "feature-"))]
        merged = with_inherited(stated, with_inherited(inherited_metadata(folder), inherited))
        tags = {*merged["tags"]}.difference(TAGS)
        if self.ours:
            tags.update(TAGS)
        return {**merged, "tags": sorted(tags) or None, "pipeline_tag": self.task, "library_name": self.library}


def evaluations(rows: Iterable[Mapping[str, Any]], task: str | None) -> list[EvalResult]:
    """The measured results of this model for the card's metadata (``model-index``).

    Raises:
        LongAttentionError: a result, of this model or another, is not a finite number.
    """
    results = []
    for row in rows:
        value = row["value"]
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise LongAttentionError(
                f"The result {row['metric']!r} on {row['dataset']!r} is {value!r}, but must be a finite number."
            )
        if row.get("system"):
            continue
        dataset, metric = (re.sub(r"[\W_]+", "_", row[field].lower()).strip("_") for field in ("dataset", "metric"))
        results.append(
            EvalResult(
                row.get("task") or task or "other",
                dataset,
                row["dataset"],
                row.get("metric_type") or metric,
                float(f"{value:.5g}"),
                dataset_split=row.get("split"),
                metric_name=row["metric"],
            )
        )
    return results


def takes_global_tokens(config: Mapping[str, Any], attentions: Mapping[str, LongAttentionConfig]) -> bool:
    """Whether a caller chooses a model's global tokens. A config may choose them itself, by a separator."""
    if "" not in attentions or is_generic(config) or config.get("question_separator_id") is not None:
        return False
    return prototype(attentions[""].mechanism, attentions[""].options).capabilities.takes_globals


def layer_count(config: Any, tower: str) -> int:
    """Number of layers of a tower, or of a model without towers. Some have several stages of layers."""
    stack = getattr(config, tower_field(tower), config)
    return sum(getattr(stack, "depths", [getattr(stack, "num_hidden_layers", 1)]))


def attentions_of(config: Mapping[str, Any], family: Family | None) -> dict[str, LongAttentionConfig]:
    """Tower -> its attention. A model without towers has one entry with an empty name, a short model has none."""
    chosen = config.get("long_attention") or {}
    if chosen and TOWERS not in chosen:
        return {"": LongAttentionConfig.from_dict(chosen)}
    attentions = dict(chosen.get(TOWERS, {}))
    for name in () if family is None else family.towers:
        attentions[name] = (config.get(tower_field(name)) or {}).get("long_attention")
    return {name: LongAttentionConfig.from_dict(attention) for name, attention in attentions.items() if attention}


def limits_of(family: Family | None, config: Any, attentions: Mapping[str, LongAttentionConfig]) -> list[str]:
    """The limits of a model, one or two sentences each: the longest input, and the maximum length with full
    attention."""
    if family is None:
        return [longest_in_words(PLAIN_TEXT, PLAIN_TEXT.sizes(None, config).new)]
    limits = list[str]()
    for name, (part, of_part) in family.by_tower(config).items():
        longest, nouns = part.spec.sizes(part, of_part).new, part.spec.nouns
        by_table = part.position_tables and getattr(of_part, "position_embedding_type", "absolute") == "absolute"
        back = positions_without_end(part, of_part) if hasattr(of_part, "attending") else None
        if by_table and not longest.name:
            limits.append(f"Inputs of more than {longest.tokens:,} tokens are refused; truncate them.")
        elif back is not None:
            limits.append(
                f"Its texts may be of any length: no query looks back more than {back:,} positions, its own included."
            )
        elif longest.tokens:
            limits.append(longest_in_words(part.spec, longest))
        if name in attentions and not part.spec.on_grid:
            whose = f"The attention of the tower {name}" if name else "Its attention"
            layers, causal = getattr(of_part, "attending", (1, False))
            equal = equality_with_full(attentions[name], layers, causal, longest.tokens, nouns)
            limits.append(f"{whose} {equal}.")
            if getattr(of_part, "decoder_long_attention", None) is not None:
                of_decoder = equality_with_full(of_part.decoder_attention, of_part.decoder_layers, True, None, "texts")
                limits.append(f"The self-attention of its decoder {of_decoder}.")
    return [*dict.fromkeys(limits)]


def longest_in_words(spec: InputSpec, longest: InputSize) -> str:
    return f"It was made for {spec.nouns} of up to {longest.words}. Other sizes may run, but were not verified."


def equality_with_full(
    attention: LongAttentionConfig, layers: int, causal: bool, longest: int | None, nouns: str
) -> str:
    """Maximum length, at most ``longest``, at which the attention of a stack equals full attention, as a predicate."""
    mechanisms = attention.prototypes(range(layers))
    lengths = range(1, 1 + (longest or 2**20))
    exact = bisect_left(
        lengths, True, key=lambda length: not all(is_full(mechanism, length, causal) for mechanism in mechanisms)
    )
    if exact == 0:
        return "never equals full attention"
    if exact == len(lengths):
        return "equals full attention at every length"
    return f"equals full attention on {nouns} of up to {exact:,} tokens"


def next_step(step: Mapping[str, Any], name: str) -> str:
    """Shell command or advice on training the model ``name``, from ``next_step`` of its conversion report. Empty if
    there is none."""
    if step.get("command"):
        return shlex.join(word.replace("{model}", name) for word in step["command"])
    return (step.get("advice") or "").replace("{model}", name)


def read_report(folder: Path) -> dict[str, Any]:
    """The report of the conversion that made a folder; empty if there is none."""
    file = folder / CONVERSION_REPORT
    if not file.exists():
        return {}
    return read_json_object(file)


# What a card takes over from the source's.


def origin_of(source: str) -> str:
    """A model's name on the Hub, or "a local folder", whose name is never published."""
    if "/" in source and public_name(source) == source:
        return f"`{in_one_line(source)}`"
    return "a local folder"


def inherited_metadata(source: str | Path, *, download: bool = False) -> dict[str, Any]:
    """The fields in :data:`INHERITED` of the card of a folder, or of a Hub repository in the cache. Without tags in
    :data:`FORMATS`.

    If the card cannot be read, warns and returns none.

    Args:
        download: request the card of a Hub repository, so that it is in the cache.
    """
    folder = Path(source).expanduser()
    card = folder / "README.md"
    if not folder.is_dir():
        with suppress(OSError, ValueError, HTTPError):  # no such card, or no connection
            card = Path(hf_hub_download(str(source), "README.md", local_files_only=not download))
    data: dict[str, Any] = {}
    if card.is_file():
        try:
            data = read_card(card).data.to_dict()
        except CheckpointError as error:
            warnings.warn(f"{error} No metadata is taken from it.", stacklevel=2)
    fields = {name: data[name] for name in INHERITED if data.get(name)}
    if "tags" in fields:
        fields["tags"] = [tag for tag in fields["tags"] if tag.lower() not in FORMATS]
    return fields


def with_inherited(stated: Mapping[str, Any], inherited: Mapping[str, Any]) -> dict[str, Any]:
    """``stated`` completed by ``inherited``. Tags are merged; a stated licence also drops the inherited licence's name
    and link."""
    rest = {
        name: value for name, value in inherited.items() if not (stated.get("license") and name.startswith("license"))
    }
    merged = {**rest, **{name: value for name, value in stated.items() if value}}
    return {**merged, "tags": sorted({*inherited.get("tags", []), *(stated.get("tags") or [])})}


def read_card(path: Path) -> ModelCard:
    """The card in a file, in a time that is linear in its size.

    Raises:
        CheckpointError: the file or its metadata cannot be read, or it has more than the limits of this file.
    """
    text = read_text(path, LARGEST_CARD)
    with checkpoint_errors(f"The metadata of {str(path)!r} cannot be read"):
        block, values = REGEX_YAML_BLOCK.search(text), dict[str, Any]()
        if block is not None:
            check_metadata(block[2])
            values = yaml.load(block[2], YAML_LOADER) or {}
        if not isinstance(values, dict):
            raise TypeError(f"it must be names with values, not {type(values).__name__}")
        json.dumps(values, default=str, ensure_ascii=False).encode()  # YAML escapes can encode half a surrogate pair
        tags = values.get("tags")
        if tags is not None:
            listed_tags = tags if isinstance(tags, list) else [tags]
            if len(listed_tags) > MOST_TAGS or any(isinstance(tag, dict | list) for tag in listed_tags):
                raise TypeError(f"tags must be a list of at most {MOST_TAGS:,} words")
            values["tags"] = [str(tag) for tag in listed_tags if tag is not None]
        card = ModelCard("---\n\n---\n")
        card.text = text if block is None else text[block.end() :]
        card.data = ModelCardData(**values)
        return card


def check_metadata(block: str) -> None:
    """Refuse metadata that would take much time or memory: aliases that multiply, deep nesting, and long numbers.

    Raises:
        ValueError: the metadata has more than the limits of this file.
    """
    sizes = dict[str, int]()  # anchor -> characters and nodes, aliases written out
    parts: list[tuple[str | None, int]] = [(None, 0)]  # the open lists and mappings
    for event in yaml.parse(block, YAML_LOADER):
        anchor, size = getattr(event, "anchor", None), 0
        if isinstance(event, yaml.CollectionStartEvent):
            parts.append((anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = parts.pop()
        elif isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor, LARGEST_CARD)  # an alias of a list that is still open would never end
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value)
            if size > LONGEST_NUMBER and re.fullmatch(r"[-+\w.:]+", event.value):
                raise ValueError(f"a number or word has {len(event.value):,} characters")
        if size:
            parts[-1] = (parts[-1][0], parts[-1][1] + size)
            if anchor is not None and not isinstance(event, yaml.AliasEvent):
                sizes[anchor] = size
        if parts[-1][1] > LARGEST_CARD or len(parts) > DEEPEST_METADATA:
            raise ValueError(
                f"its aliases make more than {LARGEST_CARD:,} characters of it, or it is nested more than "
                f"{DEEPEST_METADATA} deep"
            )


def from_source(source: str) -> dict[str, Any]:
    """Arguments of :func:`model_card` for a model loaded from ``source``, the base model or a folder whose card names
    it."""
    if not source:
        return {}
    inherited = inherited_metadata(source, download=True)
    if not Path(source).expanduser().exists():
        return {"source": source, "base_model": source}
    return {"source": source, "base_model": inherited.get("base_model")}
