"""Write model cards from a model's config, its conversion report, the card of its source and measured results.

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
"""Auto class of a head -> the Hub's name of its task. Other heads have no task on the Hub."""
AUTO_CLASSES = {
    **{task: auto for auto, task in TASKS.items()},
    "feature-extraction": "AutoModel",
    "image-feature-extraction": "AutoModel",
}
"""The Hub's name of a task -> the Auto class that loads models for it."""
INHERITED = ("license", "license_name", "license_link", "language", "datasets", "tags", "base_model")
"""Fields of a card's metadata that a model gets from its source. Results are not among them."""
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
"""Limits of a card's metadata: levels of nesting, characters of a number or word, and number of tags. huggingface_hub
compares all pairs of tags."""
NEW_TOKENS = 20
"""Number of tokens that a card's example generates."""
LIBRARIES: dict[str | None, str] = {
    GRAPHS["onnx"]: "onnx",
    GRAPHS["openvino"]: "openvino",
    GRAPHS["torch"]: "pytorch",
}
"""File name of a graph -> the Hub's name of its library."""
REMOTE_CODE = (
    "A program that does not import hf_longattn passes `trust_remote_code=True` to `from_pretrained`: a file in this "
    "repository imports hf_longattn, which must be installed."
)


def write_model_card(model_dir: str | Path, **contents: Any) -> Path:
    """Write the card of a saved model, ``README.md``, into its folder. Returns the path of the file.

    Licence, language, data sets and tags of an existing card are kept.

    Args:
        model_dir: a saved model.
        contents: further arguments of :func:`model_card`.

    Raises:
        CheckpointError: as for :func:`model_card`, or the file cannot be written.
    """
    path = Path(model_dir) / "README.md"
    card = model_card(model_dir, **contents)
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
        base_model: Hub name of the model from which this one was made. Omit it for a local folder.
        source: folder or Hub name of a model whose metadata is inherited. By default, it is the source in the report,
            if the folder has no card yet.
        report: the conversion's report. By default, it is the folder's ``conversion_report.json``.
        results: measured results. Each has ``dataset`` and ``metric``, which are readable names ("exact match"), and a
            finite ``value``. It may have ``unit`` ("%", "s", "nats"), ``n`` (the number of examples),
            ``standard_error``, ``split``, ``task`` (the Hub's name; by default the model's) and ``metric_type``. A
            result with a ``system`` is of another model: it is in the table, but not in the metadata
            (``model-index``).
        name: Hub name or path from which readers load the model. By default, it is ``model_dir``.
        introduction: text in place of the first sentence.
        training: text on the training.
        metadata: license, language, datasets, tags or other fields of ``ModelCardData``. Fields of :data:`INHERITED`
            that are not given are taken from the cards of the folder and of the source.

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

        # the model: its family, its config with defaults, its length and attention
        backbone, text_config = config, config.get("text_config")
        if config.get("model_type") == MULTIMODAL_TYPE and isinstance(text_config, dict):
            backbone = text_config  # the card describes the text model of a multimodal model
        family, spec, typed_config = family_in(backbone), PLAIN_TEXT, SimpleNamespace(**backbone)
        if family is not None:
            spec, typed_config = family.spec, family.config_class.from_dict(dict(backbone))
        length = int(plan.get("new_length") or spec.sizes(family, typed_config).new.tokens)
        loading = Loading.of(folder, config, length, partial(spec.example, folder, typed_config))
        attentions = attentions_of(backbone, family)

        # the metadata, and the first sentence
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
        text.encode()  # raises an error if a name contains bytes that are not UTF-8
        return ModelCard(text)


@dataclass(frozen=True)
class Loading:
    """How a card's code loads a model, and runs it once."""

    architecture: str  # name of the model's class
    auto: str  # the Auto class that loads the model; empty if there is none
    sentences: str | None  # the class of sentence-transformers that loads the model, or None
    graph: str | None  # file name of an exported graph, if the folder has no other weights
    ours: bool  # whether it is a Long model
    example: Example  # lines of code that make the inputs
    task: str | None  # the Hub's name of the task, if any
    library: str  # the Hub's name of the library

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any], length: int, example_of: Callable[[int], Example]) -> Loading:
        """How a saved model is loaded and run.

        Args:
            folder: the saved model.
            config: its config.json.
            length: maximum number of tokens that it reads.
            example_of: function that returns the example for a number of tokens.
        """
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
            task = example.task  # of a model without a head; None if no card for this kind of input has a task
            if task is not None:
                if "For" in architecture or "Heads" in architecture:
                    task = None  # the model has a head
                # other encoder-decoders are trained for any task, but all Marian models for translation
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
        """The metadata of a card.

        ``stated`` fields take precedence over fields of the card in ``folder``, and these over fields of the card of
        ``source``.
        """
        inherited = inherited_metadata(source) if source else {}
        inherited.pop("base_model", None)  # the model from which the source was made
        if self.auto in TASKS and self.sentences is None:
            # a model with a head for another task is no sentence encoder
            source_tags = inherited.get("tags", ())
            inherited["tags"] = [tag for tag in source_tags if not tag.startswith(("sentence-", "feature-"))]
        merged = with_inherited(stated, with_inherited(inherited_metadata(folder), inherited))
        tags = {*merged["tags"]}.difference(TAGS)
        if self.ours:
            tags.update(TAGS)
        return {**merged, "tags": sorted(tags) or None, "pipeline_tag": self.task, "library_name": self.library}


def evaluations(rows: Iterable[Mapping[str, Any]], task: str | None) -> list[EvalResult]:
    """The results of this model, for the card's metadata (``model-index``). Results of other systems are left out.

    Args:
        rows: results as for :func:`model_card`.
        task: the Hub's name of the model's task.

    Raises:
        LongAttentionError: a result, of this model or another system, is not a finite number.
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
    """Whether a caller passes the global tokens to the model. With a separator in its config, a model finds them
    itself."""
    if "" not in attentions or is_generic(config) or config.get("question_separator_id") is not None:
        return False
    return prototype(attentions[""].mechanism, attentions[""].options).capabilities.takes_globals


def layer_count(config: Any, tower: str) -> int:
    """Number of layers of a tower, or of a model without towers (``tower=""``), over all its stages."""
    stack = getattr(config, tower_field(tower), config)
    return sum(getattr(stack, "depths", [getattr(stack, "num_hidden_layers", 1)]))


def attentions_of(config: Mapping[str, Any], family: Family | None) -> dict[str, LongAttentionConfig]:
    """Name of a tower -> its attention.

    A model without towers has one entry with an empty name. A model without mechanisms has no entry.
    """
    stored = config.get("long_attention") or {}
    if stored and TOWERS not in stored:
        return {"": LongAttentionConfig.from_dict(stored)}
    attentions = dict(stored.get(TOWERS, {}))
    if family is not None:
        for name in family.towers:
            attentions[name] = (config.get(tower_field(name)) or {}).get("long_attention")
    return {name: LongAttentionConfig.from_dict(attention) for name, attention in attentions.items() if attention}


def limits_of(family: Family | None, config: Any, attentions: Mapping[str, LongAttentionConfig]) -> list[str]:
    """The limits of a model, as one or two sentences each.

    They are the longest input, and the maximum length at which attention equals full attention, of each tower.
    """
    if family is None:
        return [longest_in_words(PLAIN_TEXT, PLAIN_TEXT.sizes(None, config).new)]
    limits: list[str] = []
    for name, (tower, tower_config) in family.by_tower(config).items():
        longest = tower.spec.sizes(tower, tower_config).new
        type_of_positions = getattr(tower_config, "position_embedding_type", "absolute")
        has_table = tower.position_tables and type_of_positions == "absolute"
        look_back = positions_without_end(tower, tower_config) if hasattr(tower_config, "attending") else None

        # the longest input
        if has_table and not longest.name:
            limits.append(f"Inputs of more than {longest.tokens:,} tokens are refused; truncate them.")
        elif look_back is not None:
            limits.append(
                f"Its texts may be of any length: no query looks back more than {look_back:,} positions, its own "
                "included."
            )
        elif longest.tokens:
            limits.append(longest_in_words(tower.spec, longest))

        # equality with full attention
        if name in attentions and not tower.spec.on_grid:
            subject = f"The attention of the tower {name}" if name else "Its attention"
            layers, causal = getattr(tower_config, "attending", (1, False))
            predicate = equality_with_full(attentions[name], layers, causal, longest.tokens, tower.spec.nouns)
            limits.append(f"{subject} {predicate}.")
            if getattr(tower_config, "decoder_long_attention", None) is not None:
                decoder, layers = tower_config.decoder_attention, tower_config.decoder_layers
                predicate = equality_with_full(decoder, layers, True, None, "texts")
                limits.append(f"The self-attention of its decoder {predicate}.")
    return [*dict.fromkeys(limits)]


def longest_in_words(spec: InputSpec, longest: InputSize) -> str:
    """The sentences about the longest input of a model that may read other sizes, too."""
    return f"It was made for {spec.nouns} of up to {longest.words}. Other sizes may run, but were not verified."


def equality_with_full(
    attention: LongAttentionConfig, layers: int, causal: bool, longest: int | None, nouns: str
) -> str:
    """The maximum length at which the attention of a stack equals full attention, as a predicate of a sentence.

    Args:
        attention, layers, causal: the attention of the stack, its number of layers, and whether it is causal.
        longest: maximum tokens of the stack's inputs; ``None`` or 0 if it is not known.
        nouns: plural noun for the inputs.
    """
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
    """How to train a converted model: a shell command, or advice. Empty if there is neither.

    Args:
        step: the ``next_step`` of the model's conversion report.
        name: the name by which the model is loaded.
    """
    if step.get("command"):
        return shlex.join(word.replace("{model}", name) for word in step["command"])
    return (step.get("advice") or "").replace("{model}", name)


def read_report(folder: Path) -> dict[str, Any]:
    """The report of the conversion that wrote a folder; empty if there is none."""
    file = folder / CONVERSION_REPORT
    if not file.exists():
        return {}
    return read_json_object(file)


# Metadata that a card takes from the card of its source.


def origin_of(source: str) -> str:
    """A source in a sentence of a card: its Hub name, or "a local folder", since a folder's name is never
    published."""
    if "/" in source and public_name(source) == source:
        return f"`{in_one_line(source)}`"
    return "a local folder"


def inherited_metadata(source: str | Path, *, download: bool = False) -> dict[str, Any]:
    """The fields :data:`INHERITED` in the card of a model. Tags in :data:`FORMATS` are left out.

    A missing card gives no fields. A card that cannot be read gives a warning, too.

    Args:
        source: a folder, or the name of a Hub repository.
        download: download the card of a Hub repository. By default, the card must be in the Hub cache.
    """
    folder = Path(source).expanduser()
    card = folder / "README.md"
    if not folder.is_dir():
        with suppress(OSError, ValueError, HTTPError):  # there is no such card, or no connection
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
    """Metadata with the ``stated`` fields, and ``inherited`` fields that are not stated.

    Tags are merged. With a stated licence, no field about the licence is inherited.
    """
    if stated.get("license"):
        inherited = {name: value for name, value in inherited.items() if not name.startswith("license")}
    merged = {**inherited, **{name: value for name, value in stated.items() if value}}
    return {**merged, "tags": sorted({*inherited.get("tags", []), *(stated.get("tags") or [])})}


def read_card(path: Path) -> ModelCard:
    """Read the card in a file. The time is linear in the size of the file, also for a card that was made to take long.

    Raises:
        CheckpointError: the file or its metadata cannot be read, or the metadata exceed the limits of this module.
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

    The size of a node is its number of characters and nodes, with all aliases written out.

    Raises:
        ValueError: the metadata exceed the limits of this module.
    """
    sizes: dict[str, int] = {}  # anchor -> size of its node
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # anchor and size of each open list or mapping
    for event in yaml.parse(block, YAML_LOADER):
        anchor = getattr(event, "anchor", None)
        size = 0  # of a node that ends here
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.AliasEvent):
            # an alias of a node that is still open would never end, so it gets a size that is refused
            size = sizes.get(event.anchor, LARGEST_CARD)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value)
            if size > LONGEST_NUMBER and re.fullmatch(r"[-+\w.:]+", event.value):
                raise ValueError(f"a number or word has {len(event.value):,} characters")
        if size:
            parent_anchor, parent_size = open_nodes[-1]
            open_nodes[-1] = (parent_anchor, parent_size + size)
            if anchor is not None and not isinstance(event, yaml.AliasEvent):
                sizes[anchor] = size
        if open_nodes[-1][1] > LARGEST_CARD or len(open_nodes) > DEEPEST_METADATA:
            raise ValueError(
                f"its aliases make more than {LARGEST_CARD:,} characters of it, or it is nested more than "
                f"{DEEPEST_METADATA} deep"
            )


def from_source(source: str) -> dict[str, Any]:
    """The arguments ``source`` and ``base_model`` of :func:`model_card`, for a model that was loaded from ``source``.

    A Hub name is the base model itself. The card of a local folder may name its base model.
    """
    if not source:
        return {}
    inherited = inherited_metadata(source, download=True)
    if not Path(source).expanduser().exists():
        return {"source": source, "base_model": source}
    return {"source": source, "base_model": inherited.get("base_model")}
