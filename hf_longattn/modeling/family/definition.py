"""What a family is, and the table of all families."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from ...declarations import declared
from ...errors import RegistrationError
from ...naming import load_module, module_names
from .page_rule import PLAIN_TEXT, PageRule
from .position_table import PositionTable as PositionTable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ...configuration import LongAttentionConfig
    from .audio_rule import AudioRule
    from .grid_rule import GridRule

MODEL_NAME = re.compile(r"(Model|Backbone|For[A-Z]\w+)$")
CAUSAL_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
"""Endings of classes with one stack that predict the next token."""
LANGUAGE_MODELS = ("ForMaskedLM", "ForPreTraining", *CAUSAL_LANGUAGE_MODELS, "DoubleHeadsModel")
"""Endings of classes with one stack that predict tokens."""
WITHOUT_HEAD = ("Model", "Backbone")
"""Endings of classes without a head."""
ENCODER_ALONE, DECODER_ALONE = ("EncoderModel", "ForTokenClassification", "ForAudioClassification"), ("ForCausalLM",)
"""Endings of the classes of an encoder-decoder that have one stack."""
TOWER_CONFIG = "_config"
"""After a tower's name in the field of a model's config that holds the tower's: ``text_config``."""
LENGTHS = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")
"""What configs call the length of an input; the last two are those of LED and MPT."""


def tower_field(name: str) -> str:
    """The config's field with the config of a tower: "text" -> "text_config"."""
    return f"{name}{TOWER_CONFIG}"


def without_head(model: Any) -> Any:
    """The model below its head; itself where it has none, also where ``base_model`` is a part of it (DINOv3's layers)."""
    return model if type(model).__name__.endswith(WITHOUT_HEAD) else model.base_model


def model_name(model: Any) -> str:
    """What a message or a report calls a model in memory: the folder or the Hub name that it was loaded from, or else its class."""
    return str(getattr(getattr(model, "config", None), "name_or_path", "")) or type(model).__name__


def encoder_decoder_tables(**options: Any) -> tuple[PositionTable, PositionTable]:
    """The tables ``embed_positions`` of an encoder and of a decoder, with the same ``options``."""
    encoder, decoder = (rf"{stack}\.embed_positions\.weight$" for stack in ("encoder", "decoder"))
    return PositionTable(encoder, **options), PositionTable(decoder, **options, decoder=True)


@dataclass(frozen=True)
class AttentionNames:
    """Names in the attention modules of a base that differ from the usual ones in :mod:`hf_longattn.modeling.attach.attention_sites`.

    query, key, value: the projections.
    fused: one projection for all three.
    split: ``(attention module, weight or bias of the fused projection) -> (query, key, value)``, each in the layout of ``nn.Linear``.
    output: the output projection.
    heads, head_dim: the number of heads and their width, in the module or its config.
    """

    query: str | None = None
    key: str | None = None
    value: str | None = None
    fused: str | None = None
    split: Callable[[Any, Any], tuple[Any, Any, Any]] | None = None
    output: str | None = None
    heads: str | None = None
    head_dim: str | None = None


@dataclass(frozen=True)
class Family:
    """A base architecture and its Long classes (:mod:`.classes`).

    config_class: the Long config, a subclass of ``LongConfig`` and of the base's config.
    position_tables: the tables to extend; empty for rotary models.
    rope: whether positions are rotary in every model; see :meth:`rotary`.
    relative: whether positions are terms of the scores alone (T5), which have no longest input.
    classes: the base's model classes, if that package has others as well (CLIP's has a text model's, too).
    inner: the model class of the base inside its models that heads call instead of the base model (``OPTDecoder``), besides the encoder and
        decoder of an encoder-decoder.
    stack: the base's class of both the encoder and the decoder, if they have one class (``T5Stack``).
    attention: unusual names in its attention modules.
    sizes: unusual names of the config's fields, ``{"n_hidden": "width"}``, with which tests make small models.
    bodies: model classes of the base that hold its embeddings and layers themselves, besides the base model (``Dinov2Backbone``).
    mixin: the first base of every Long class of this family, if the base needs more than mechanisms on its attention modules.
    grid: how the tokens of an input lie on a grid, in a family that reads pictures.
    audio: how sound becomes frames, in a family that reads sound.
    page: what the model reads along the tokens besides their ids, in a family that reads pages.
    base_classes: imports the base's model classes by name, where transformers' cannot be built with what can be installed; each is a
        subclass of transformers' class of the same name.
    own_attention: the mechanisms that equal the base's attention with a config, where that is not full attention.
    read_without_mask: what to know of texts with a mask, in a base that was trained on padded texts without one (SigLIP); native twins are
        compared without a mask.
    """

    config_class: type[PreTrainedConfig]
    position_tables: tuple[PositionTable, ...] = ()
    rope: bool = False
    relative: bool = False
    classes: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    stack: str | None = None
    attention: AttentionNames = AttentionNames()
    sizes: Mapping[str, str] = field(default_factory=dict, compare=False)
    bodies: tuple[str, ...] = ()
    mixin: type | None = None
    grid: GridRule | None = None
    audio: AudioRule | None = None
    page: PageRule = PLAIN_TEXT
    base_classes: Callable[[], Mapping[str, type[Any]]] | None = None
    own_attention: Callable[[Any], LongAttentionConfig] | None = None
    read_without_mask: str = ""

    def __post_init__(self) -> None:
        """Enter the family into the table of imported families.

        Raises:
            RegistrationError: the entry is incomplete, or another file has the same model type.
        """
        caller = traceback.extract_stack(limit=3)[0]
        where = f"{caller.filename}:{caller.lineno}"
        if problem := self._problem():
            raise RegistrationError(f"The family at {where} cannot be registered: {problem}")
        registered = _REGISTERED.setdefault(self.base_model_type, (where, self))
        if registered[0].rpartition(":")[0] != caller.filename:
            raise RegistrationError(
                f"The family at {where} cannot be registered: {registered[0]} already has the model type "
                f"{self.config_class.model_type!r}; leave one of them out."
            )
        _REGISTERED[self.base_model_type] = where, self

    def _problem(self) -> str | None:
        """What is wrong with the entry, or ``None``."""
        config = self.config_class
        base = getattr(config, "base_model_type", None)
        name = getattr(config, "__name__", repr(config))
        if base is None:
            return f"{name} is not a Long config; derive it as class LongNewConfig(LongConfig, NewConfig)."
        if config.__dict__.get("model_type") != f"long_{base}":
            return f"{name} needs model_type = 'long_{base}'."
        fields = {*getattr(config, "__dataclass_fields__", ()), *config.attribute_map}
        if not (self.rope or self.relative or self.position_tables or self.audio) and "max_position_embeddings" in fields:
            return (
                f"{name} has max_position_embeddings, but the entry does not say where positions are; give "
                r"position_tables=(PositionTable(r'position_embeddings\.weight$'),), or rope=True for rotary ones."
            )
        return None

    @property
    def base_config_class(self) -> type[PreTrainedConfig]:
        return self.config_class.__bases__[-1]

    @property
    def base_model_type(self) -> str:
        """transformers' ``model_type`` of the base, e.g. ``"bert"``."""
        return self.base_config_class.model_type

    @property
    def base_package(self) -> str:
        """transformers' package of the base, e.g. ``"transformers.models.xlm_roberta"``."""
        return base_package(self.base_model_type)

    @property
    def module(self) -> str:
        """The module that holds the classes, e.g. ``"hf_longattn.families.bert"``."""
        return self.config_class.__module__

    @cached_property
    def heads(self) -> dict[str, str]:
        """Name of every model class of the base -> name of its Long class."""
        return long_names(self.base_model_type, self.classes)

    @property
    def reads_text(self) -> bool:
        """Whether the input is the tokens of a text, rather than a picture or sound, or one for each tower."""
        return self.grid is None and self.audio is None and not hasattr(self.config_class, "tower_classes")

    @cached_property
    def base_model_name(self) -> str:
        """The base's model class without a head; transformers has no ``AutoModel`` for some that are parts of others (SigLIP's text)."""
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

        return MODEL_MAPPING_NAMES.get(self.base_model_type) or next(name for name in self.classes if name.endswith("Model"))

    @property
    def towers(self) -> dict[str, Family]:
        """The family of each tower by its name, in a model that is made of several (CLIP: "text" and "vision")."""
        configs = getattr(self.config_class, "tower_classes", {})
        return {name: FAMILIES[config_class.base_model_type] for name, config_class in configs.items()}

    @property
    def holds_encoder(self) -> bool:
        """Whether the layers with attention are those of an encoder with a config of its own, ``encoder_config`` (Parakeet's heads)."""
        return hasattr(self.config_class, "encoder_class")

    @property
    def two_stacks(self) -> bool:
        """Whether the base is an encoder and a decoder with attention; a transducer's decoder has none."""
        return bool(getattr(self.base_config_class, "is_encoder_decoder", False)) and not self.holds_encoder

    @cached_property
    def stacks(self) -> dict[str, str]:
        """Base name -> Long name of the encoder and the decoder of a base that has both: ``{"BartEncoder": "LongBartEncoder", …}``."""
        stem = self.base_model_name.removesuffix("Model")
        names = (self.stack,) if self.stack is not None else (f"{stem}Encoder", f"{stem}Decoder")
        return {name: f"{long_prefix(self.base_model_type)}{name}" for name in names} if self.two_stacks else {}

    @cached_property
    def parts(self) -> dict[str, str]:
        """Base name -> Long name of every model class that is only used inside another."""
        return {**self.stacks, **{name: f"{long_prefix(self.base_model_type)}{name}" for name in self.inner}}

    def has_decoder(self, head: str) -> bool:
        """Whether the class of the base or the Long class ``head`` decodes, with or without an encoder."""
        return self.two_stacks and not head.endswith(ENCODER_ALONE)

    def has_encoder(self, head: str) -> bool:
        """Whether the class ``head`` of an encoder-decoder has the encoder."""
        return self.two_stacks and not head.endswith(DECODER_ALONE)

    def decoder_layers(self, config: Any) -> int:
        """The number of layers of the decoder with this config of the base."""
        return int(config.decoder_layers if hasattr(config, "decoder_layers") else config.num_decoder_layers)

    def base_length(self, config: Any, table: PositionTable | None = None) -> int:
        """The value of the field of ``table`` in this config of the base, which counts special rows; its maximum length without one."""
        if self.relative:
            of_long: Any = self.config_class
            return int(of_long.length_in(config.to_dict()))
        field = "max_position_embeddings" if table is None or not hasattr(config, table.field) else table.field  # one for both stacks
        return int(getattr(config, field))

    def longest(self, config: Any) -> int:
        """The most tokens of one input of a model with this config, the family's or its base's; special rows of a table do not count.
        Of a model on a grid, those of the size for which it was made; of a model of sound, the frames of the duration; of towers, those
        of the text."""
        if self.grid is not None:
            return self.grid.longest(config)
        if self.audio is not None:
            return self.audio.most_frames(config)
        if self.towers:
            lengths = {name: tower.longest(getattr(config, tower_field(name))) for name, tower in self.towers.items() if tower.reads_text}
            return max(lengths.values(), default=0)
        alone = self.two_stacks and not config.is_encoder_decoder
        table = next((entry for entry in self.position_tables if entry.decoder == alone), None)
        if table is None:
            return config.max_position_embeddings
        return table.tokens(config) if hasattr(config, table.field) else self.base_length(config, table) - table.config_value(0, config)

    def rotary(self, config: Any) -> bool:
        """Whether positions are rotary: in the whole family, or with this config."""
        return self.rope or getattr(config, "position_embedding_type", None) == "rotary"

    def table(self, name: str) -> PositionTable | None:
        """The position table that is the parameter ``name``, or ``None``."""
        return next((table for table in self.position_tables if table.matches(name)), None)

    @cached_property
    def exports(self) -> tuple[str, ...]:
        """The family's public names: the config and the models."""
        return (self.config_class.__name__, *self.heads.values())

    def model_class(self, name: str) -> type[Any]:
        """The Long class ``name``, or that of the base class ``name``."""
        return getattr(importlib.import_module(self.module), {**self.heads, **self.parts}.get(name, name))

    @property
    def base_attention_name(self) -> str:
        """What the base's attention is called where it takes a mechanism's place."""
        return "full attention" if self.own_attention is None else "the attention of the base"

    def base_class(self, name: str) -> type[Any]:
        """The base's class ``name`` with a head, as it can be built."""
        return getattr(importlib.import_module(self.base_package), name) if self.base_classes is None else self.base_classes()[name]

    def long_class_of(self, base: type) -> type[Any] | None:
        """The Long class made from ``base``, or ``None`` if that is not a model class of this family's base."""
        built = self.base_classes is not None and self.base_classes().get(base.__name__) is base
        known = (built or base.__module__.startswith(f"{self.base_package}.")) and base.__name__ in {**self.heads, **self.parts}
        return self.model_class(base.__name__) if known else None


def family_names(model_types: Collection[str]) -> list[str]:
    """The base model types with a family: a file of :mod:`hf_longattn.families` of that name, or facts that were derived."""
    modules = {*module_names("families"), *derived_facts()}
    return sorted(model_type for model_type in model_types if module_name(model_type) in modules)


@cache
def derived_facts() -> Mapping[str, tuple[str, Mapping[str, Any]]]:
    """Module name -> model type and facts of every family without a file (:mod:`hf_longattn.modeling.derived`)."""
    return {module_name(model_type): (model_type, facts) for model_type, facts in declared()["derived"].items()}


@cache
def long_prefix(base_model_type: str) -> str:
    """What comes before the names of a base's classes in those of its Long classes: ``Long``, or ``LongAttention`` where transformers has
    such classes itself (its ``LongT5Model`` is no T5Model)."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    taken = (name for model_type, name in CONFIG_MAPPING_NAMES.items() if not model_type.startswith("long_"))
    return "LongAttention" if f"Long{CONFIG_MAPPING_NAMES[base_model_type]}" in taken else "Long"


def module_name(model_type: str) -> str:
    """The module of a model type, in transformers and here: ``"xlm-roberta"`` -> ``"xlm_roberta"``."""
    return model_type.replace("-", "_")


def base_package(base_model_type: str) -> str:
    """transformers' package of a model type: ``"gemma3_text"`` -> ``"transformers.models.gemma3"``."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    return f"transformers.models.{model_type_to_module_name(base_model_type)}"


def long_names(base_model_type: str, classes: tuple[str, ...]) -> dict[str, str]:
    """Name of every model class of a base -> name of its Long class; no model is imported.

    Args:
        base_model_type: transformers' ``model_type`` of the base.
        classes: the family's ``classes``; empty for all models of the package.
    """
    names = classes or filter(MODEL_NAME.search, dir(importlib.import_module(base_package(base_model_type))))
    prefix = long_prefix(base_model_type)
    return {name: f"{prefix}{name}" for name in names if "pretrained" not in name.lower()}


@cache
def declared_exports(base_model_type: str) -> tuple[str, ...]:
    """The :attr:`Family.exports` of a base, which is not imported. A new file may have fewer.

    They are stored for one version of transformers. Otherwise they are read from the names in the base's package.
    """
    if base_model_type in _stored_exports():
        return tuple(_stored_exports()[base_model_type])
    facts = declared()["derived"].get(base_model_type, {})
    classes = tuple(declared()["families"].get(base_model_type, facts.get("classes", ())))
    return class_names(base_model_type, classes)


def class_names(base_model_type: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a base's Long config and Long models; arguments as :func:`long_names`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    config = CONFIG_MAPPING_NAMES[base_model_type]
    defined = config in dir(importlib.import_module(base_package(base_model_type)))  # a tokenizer's model type has another base's config
    names = long_names(base_model_type, classes).values()
    return (f"{long_prefix(base_model_type)}{config}", *names) if defined else tuple(names)


def public_class_names() -> list[str]:
    """The public names of all families. This imports no family, and transformers only if a family's file is new."""
    if _all_stored():
        return [name for names in _stored_exports().values() for name in names]
    return [name for base in FAMILIES for name in declared_exports(base)]


def _all_stored() -> bool:
    """Whether the stored names are those of every family."""
    return {*module_names("families")} <= {module_name(base) for base in _stored_exports()}


@cache
def _stored_exports() -> Mapping[str, list[str]]:
    """Base -> its family's public names, if they were stored with the installed version of transformers."""
    current = declared()["transformers"].get("version") == importlib.metadata.version("transformers")
    return declared()["exports"] if current else {}


_REGISTERED: dict[str, tuple[str, Family]] = {}
"""Model type of the base -> file and line of the entry, and the family; imported families only."""


def attention_names(module: Any) -> AttentionNames:
    """The unusual names in an attention module, from its family; families of one package share its attention modules."""
    for parent in type(module).__mro__:
        package = parent.__module__.rpartition(".")[0]
        for _, family in _REGISTERED.values():
            if family.base_package == package:
                return family.attention
    return AttentionNames()


class _Families(Mapping[str, Family]):
    """Base model type -> family, imported on first use: a module of :mod:`hf_longattn.families` named after a model type, with or without
    a file."""

    @cached_property
    def _names(self) -> list[str]:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        return family_names(CONFIG_MAPPING_NAMES)

    def __getitem__(self, base_model_type: str) -> Family:
        if base_model_type not in self._names:
            raise KeyError(base_model_type)
        module = load_module("families", module_name(base_model_type))
        family = getattr(module, "FAMILY", None)
        if not isinstance(family, Family) or "__getattr__" not in vars(module):
            lacking = "FAMILY = Family(...)" if not isinstance(family, Family) else "__getattr__ = lazy_classes(FAMILY, globals())"
            raise RegistrationError(f"{module.__file__}:1 is named after the model type {base_model_type!r}, but has no {lacking}.")
        if family.base_model_type != base_model_type:
            raise RegistrationError(
                f"{module.__file__}:1 is named after the model type {base_model_type!r}, but its FAMILY is that of "
                f"{family.base_model_type!r}; rename the file to {module_name(family.base_model_type)}.py."
            )
        return family

    def __contains__(self, base_model_type: object) -> bool:
        return base_model_type in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


FAMILIES: Mapping[str, Family] = _Families()


def known_family(config: Any) -> Family | None:
    """The family of a config, long or the base's; ``None`` for other models."""
    return FAMILIES.get(getattr(config, "base_model_type", getattr(config, "model_type", "")))


def family_in(values: Mapping[str, Any]) -> Family | None:
    """The same from the values of a ``config.json``."""
    return FAMILIES.get(str(values.get("model_type")).removeprefix("long_"))


def longest_input(config: Any) -> int | None:
    """The most tokens that a model with this config reads, special ones included; ``None`` where nothing limits them."""
    limit = getattr(config, "max_position_embeddings", None)
    family = known_family(config)
    if family is None:
        limit = next((getattr(config, name) for name in LENGTHS if hasattr(config, name)), None)
    elif isinstance(limit, int):
        limit = family.longest(config)
    return limit if isinstance(limit, int) and limit > 0 else None


def length_before_conversion(config: Any) -> int | None:
    """The most tokens that the checkpoint read which a long one was made from; ``None`` if the config does not say.

    Raises:
        Exception: of any type, as the config class raises it for values that make no config.
    """
    before = getattr(config, "extended_from", None)
    if not isinstance(before, dict):
        return None
    long_fields = ("max_decoder_position_embeddings", "long_image_size", "long_num_frames", "long_max_length", "long_audio_seconds")
    values = {name: value for name, value in config.to_dict().items() if name not in long_fields}
    length: Any = family_of(config).longest(type(config).from_dict({**values, **before}))
    return length if isinstance(length, int) else None


def family_with(name: str) -> Family | None:
    """The family with a public class ``name``; no other is imported, and for an unknown name not even transformers."""
    if _all_stored() and name not in public_class_names():
        return None
    declaring = (FAMILIES[base] for base in FAMILIES if name in declared_exports(base))
    return next((family for family in declaring if name in family.exports), None)


def why_no_class(name: str) -> str:
    """Why a base has no Long class ``name`` of one of its heads, and what to load instead, a sentence; empty for any other name."""
    if _all_stored() and not name.startswith(_incomplete_families()):
        return ""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    for base in FAMILIES:
        head = name.removeprefix(long_prefix(base))
        stem = CONFIG_MAPPING_NAMES[base].removesuffix("Config")
        if head == name or not head.startswith(stem) or head not in dir(importlib.import_module(base_package(base))):
            continue
        if (family := FAMILIES[base]).classes:
            return (
                f"{head} has no Long class; load the model as {' or '.join(sorted(family.heads.values()))}, or the checkpoint that it was "
                f"made from as {head}."
            )
    return ""


def _incomplete_families() -> tuple[str, ...]:
    """How the names of those families start that list the base's classes, as transformers has more: ``LongWhisper``."""
    bases = {*declared()["families"], *(base for base, facts in declared()["derived"].items() if "classes" in facts)}
    names = (name for base in bases for name in _stored_exports()[base])
    return tuple(name.removesuffix("Config") for name in names if name.endswith("Config"))


def family_of(config: PreTrainedConfig | type[PreTrainedConfig]) -> Family:
    """The family whose Long config this is (or derives from)."""
    return FAMILIES[config.base_model_type]
