"""The definition of a family, and the table of all families."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError, OptionError
from ...names import load_module, module_names
from .input_spec import PLAIN_TEXT
from .position_table import PositionTable as PositionTable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


FACTS_FILE = Path(__file__).parents[2] / "families" / "families.json"
"""Rows of the families without a Python file, and why other text models have no family (:func:`stored_facts`)."""
MODEL_NAME = re.compile(r"(Model|Backbone|For[A-Z]\w+)$")
"""Matches the names of model classes."""
CAUSAL_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
"""Endings of classes with one stack that predict the next token."""
LANGUAGE_MODELS = ("ForMaskedLM", "ForPreTraining", *CAUSAL_LANGUAGE_MODELS, "DoubleHeadsModel")
"""Endings of classes with one stack that predict tokens."""
WITHOUT_HEAD = ("Model", "Backbone")
"""Endings of classes without a head."""
ENCODER_ALONE, DECODER_ALONE = ("EncoderModel", "ForTokenClassification", "ForAudioClassification"), ("ForCausalLM",)
"""Endings of an encoder-decoder's classes that have only an encoder, or only a decoder."""
TOWER_CONFIG = "_config"
"""Suffix of the config's field that holds a tower's config: ``text_config``."""
UNLIMITED_LENGTH = 1 << 30
"""Lengths from here on mean no limit. A tokenizer without a maximum length has 1e30."""
LENGTHS = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")
"""Config fields with the maximum length. The last two are the names in LED and MPT."""


def tower_field(name: str) -> str:
    """The config's field with a tower's config: "text" -> "text_config"."""
    return f"{name}{TOWER_CONFIG}"


def without_head(model: Any) -> Any:
    """The model below the head of ``model``. A model without a head is returned itself, even if its ``base_model`` is
    another (DINOv3)."""
    return model if type(model).__name__.endswith(WITHOUT_HEAD) else model.base_model


@dataclass(frozen=True)
class AttentionNames:
    """Unusual names in a base's attention modules. Empty for the usual names, which
    :mod:`hf_longattn.modeling.attach.attention_sites` has.

    query, key, value, output: names of the projections.
    head_dim: name of the width of heads, in the module or its config.
    """

    query: str = ""
    key: str = ""
    value: str = ""
    output: str = ""
    head_dim: str = ""


ENTERED: list[Callable[[Any], None]] = []
"""Functions that are called with each family when it is registered. :mod:`..classes` adds the function that makes Long
classes. Files of families therefore import :class:`Family` from there."""


@dataclass(frozen=True)
class Family:
    """A base architecture and its Long classes (:mod:`..classes`).

    config_class: the Long config, a subclass of ``LongConfig`` and of the base's config.
    position_tables: the tables to extend; empty for rotary models.
    rope: whether positions are rotary in every model; see :meth:`rotary`.
    relative: whether positions are only terms of the scores (T5), which do not limit the length.
    no_positions: whether there are no positions (Jamba), unless a config chooses rotary positions.
    classes: names of the base's model classes, if its package also has classes of other models (CLIP's package has
        those of a text model).
    inner: names of model classes that heads call in place of the base model (``OPTDecoder``), besides encoder and
        decoder.
    stack: name of the base's class, if encoder and decoder have the same (``T5Stack``).
    attention: unusual names in the attention modules.
    sizes: unusual config fields -> the usual ones, such as ``{"n_hidden": "width"}``. Tests make small models by them.
    backbone_classes: names of model classes, besides the base model, that have their own embeddings and layers
        (``Dinov2Backbone``).
    mixin: the first base class of every Long class, if the base needs more than mechanisms on its attention modules.
    spec: what the models read, an :class:`.input_spec.InputSpec` of texts (the default), images, sound or towers.
    """

    config_class: type[PreTrainedConfig]
    position_tables: tuple[PositionTable, ...] = ()
    rope: bool = False
    relative: bool = False
    no_positions: bool = False
    classes: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    stack: str | None = None
    attention: AttentionNames = AttentionNames()
    sizes: Mapping[str, str] = field(default_factory=dict, compare=False)
    backbone_classes: tuple[str, ...] = ()
    mixin: type | None = None
    spec: Any = PLAIN_TEXT

    def __post_init__(self) -> None:
        """Check and register the family, and let its module make the Long classes.

        Raises:
            OptionError: the entry is incomplete.
        """
        config: Any = self.config_class
        name, base = config.__name__, getattr(config, "base_model_type", None)
        fields = {*config.__dataclass_fields__, *config.attribute_map}
        placed = self.rope or self.relative or self.no_positions or self.position_tables
        problem = ""
        if base is None:
            problem = f"{name} is not a Long config; derive it as class LongNewConfig(LongConfig, NewConfig)."
        elif config.__dict__.get("model_type") != f"long_{base}":
            problem = f"{name} needs model_type = 'long_{base}'."
        elif not (self.spec.units or placed) and "max_position_embeddings" in fields:
            problem = (
                f"{name} has max_position_embeddings, but the entry does not say where positions are; give "
                r"position_tables=(PositionTable(r'position_embeddings\.weight$'),), or rope=True for rotary ones."
            )
        if problem:
            raise OptionError(f"The family in {config.__module__} cannot be registered: {problem}")

        _REGISTERED[self.base_model_type] = self
        for enter in ENTERED:
            enter(self)

    @property
    def base_config_class(self) -> Any:
        return self.config_class.__bases__[-1]

    @cached_property
    def base_model_type(self) -> str:
        """transformers' ``model_type`` of the base, such as ``"bert"``."""
        return str(self.base_config_class.model_type)

    @cached_property
    def base_package(self) -> str:
        """transformers' package of the base, such as ``"transformers.models.xlm_roberta"``."""
        return base_package(self.base_model_type)

    @property
    def module(self) -> str:
        """The module of the family's classes, such as ``"hf_longattn.families.bert"``."""
        return self.config_class.__module__

    @property
    def two_stacks(self) -> bool:
        """Whether the base has an encoder and a decoder, both with attention."""
        return bool(getattr(self.base_config_class, "is_encoder_decoder", False))

    @cached_property
    def model_classes(self) -> dict[str, str]:
        """Name of every model class of the base -> name of its Long class."""
        return long_names(self.base_model_type, self.classes)

    @cached_property
    def exports(self) -> tuple[str, ...]:
        """The public names of the family: its config class and its model classes."""
        return (self.config_class.__name__, *self.model_classes.values())

    @cached_property
    def base_model_name(self) -> str:
        """Name of the base's model class without a head."""
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

        registered = MODEL_MAPPING_NAMES.get(self.base_model_type)
        # AutoModel does not know SigLIP's text model, for example
        return registered or next(name for name in self.classes if name.endswith("Model"))

    @property
    def towers(self) -> dict[str, Family]:
        """Families of a model's towers, by name (CLIP: "text" and "vision")."""
        configs = getattr(self.config_class, "tower_classes", {})
        return {name: FAMILIES[config_class.base_model_type] for name, config_class in configs.items()}

    def by_tower(self, config: Any) -> dict[str, tuple[Family, Any]]:
        """Name -> family and config of each tower. A model without towers counts as one tower with an empty name."""
        if not self.towers:
            return {"": (self, config)}
        return {name: (tower, getattr(config, tower_field(name))) for name, tower in self.towers.items()}

    @property
    def text_tower(self) -> tuple[str, Family]:
        """Name and family of the tower that reads texts."""
        return next((name, tower) for name, tower in self.towers.items() if not tower.spec.units)

    @cached_property
    def stacks(self) -> dict[str, str]:
        """Names of the base's encoder and decoder -> names of their Long classes: ``{"BartEncoder": "LongBartEncoder",
        …}``. Empty for a base that is not an encoder-decoder."""
        stem = self.base_model_name.removesuffix("Model")
        names = (self.stack,) if self.stack is not None else (f"{stem}Encoder", f"{stem}Decoder")
        return {name: f"{long_prefix(self.base_model_type)}{name}" for name in names} if self.two_stacks else {}

    @cached_property
    def parts(self) -> dict[str, str]:
        """Names of the base's model classes that are used only inside other models -> names of their Long classes."""
        return {**self.stacks, **{name: f"{long_prefix(self.base_model_type)}{name}" for name in self.inner}}

    def has_decoder(self, head: str) -> bool:
        """Whether the base's class ``head``, of an encoder-decoder, has a decoder."""
        return self.two_stacks and not head.endswith(ENCODER_ALONE)

    def has_encoder(self, head: str) -> bool:
        """Whether the base's class ``head``, of an encoder-decoder, has an encoder."""
        return self.two_stacks and not head.endswith(DECODER_ALONE)

    def base_length(self, config: Any, table: PositionTable | None = None) -> int:
        """The maximum length in a config of the base: of ``table``, with rows that are not positions if they are
        counted there; of the model without a table."""
        if self.relative:
            config_class: Any = self.config_class
            return int(config_class.length_in(config.to_dict()))
        # in a base, encoder and decoder may share a field
        field = "max_position_embeddings" if table is None or not hasattr(config, table.field) else table.field
        return int(getattr(config, field))

    def longest(self, config: Any) -> int:
        """Maximum tokens of an input. Rows of a position table that are not positions do not count.

        For images and sound, it is the number of tokens of the size in the config. With towers, it is the text's.

        config: a config of the family or of its base.
        """
        return int(self.spec.most_tokens(self, config))

    def scales_rotations(self, config: Any) -> bool:
        """Whether positions are rotary with this config, and ``rope_parameters`` can scale them."""
        if not hasattr(config, "rope_parameters"):
            return False
        chosen = getattr(config, "position_embedding_type", None) == "rope" or getattr(config, "use_mem_rope", False)
        return self.rope or (self.no_positions and bool(chosen))

    def rotary(self, config: Any) -> bool:
        """Whether positions are rotary, in every model of the family or with this config."""
        return self.rope or getattr(config, "position_embedding_type", None) == "rotary"

    def table(self, name: str) -> PositionTable | None:
        """The position table whose parameter has this name; ``None`` for other parameters."""
        return next((table for table in self.position_tables if re.search(table.pattern, name)), None)

    def model_class(self, name: str) -> type[Any]:
        """The Long class ``name``, or the Long class of the base's class ``name``."""
        return getattr(importlib.import_module(self.module), {**self.model_classes, **self.parts}.get(name, name))

    def base_class(self, name: str) -> type[Any]:
        return getattr(importlib.import_module(self.base_package), name)

    def long_class_of(self, base: type) -> type[Any] | None:
        """The Long class of the model class ``base``; ``None`` if ``base`` does not belong to this family."""
        if base.__name__ not in self.model_classes and base.__name__ not in self.parts:
            return None
        return self.model_class(base.__name__) if base.__module__.startswith(f"{self.base_package}.") else None


def family_names(model_types: Collection[str]) -> list[str]:
    """Those of the ``model_types`` that have a family: a file in :mod:`hf_longattn.families`, or a row in
    ``families.json``. Sorted."""
    modules = {*module_names("families"), *family_rows()}
    # module_name says the same of one type; a call for each of the many types would be slow
    return sorted(model_type for model_type in model_types if model_type.replace("-", "_") in modules)


@cache
def stored_facts() -> Mapping[str, dict[str, Any]]:
    """The content of ``families.json``, which ``make docs`` writes (:mod:`scripts.dev.tools.derived`).

    transformers: the ``version`` of transformers from whose classes ``derived`` was made.
    written: model type -> row of its family, written by hand.
    derived: model type -> row of its family, derived from transformers' classes.
    refused: model type -> why it has no family.
    """
    return json.loads(FACTS_FILE.read_text(encoding="utf-8"))


@cache
def family_rows() -> Mapping[str, tuple[str, Mapping[str, Any]]]:
    """Module name -> model type and row of every family without a file.

    A row has the non-default arguments of :class:`Family`. Classes of this package are dotted paths below
    ``hf_longattn``. These fields are no arguments, or differ from them:

    about: the docstring of the family's module.
    config: the mixin of the config class; ``LongConfig`` by default.
    attributes: class attributes that the config class changes.
    head_dim: see :class:`AttentionNames`.
    spec: the path of a spec, and the fields in which the family's spec differs from it.
    replaced: names of the base's module classes -> the subclasses or mixins that replace them.
    mixin: the mixin that replaces these modules.
    towers: names of towers -> model types of their families.
    """
    facts = stored_facts()
    return {
        module_name(model_type): (model_type, row)
        for model_type, row in {**facts["written"], **facts["derived"]}.items()
    }


def base_config_name(base_model_type: str) -> str:
    """The name of a base's config class: "bert" -> "BertConfig"."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return CONFIG_MAPPING_NAMES[base_model_type]


@cache
def long_prefix(base_model_type: str) -> str:
    """The prefix of a base's Long classes: ``Long``, or ``LongAttention`` if transformers has a class of that name
    itself (``LongT5Config``)."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    name = f"Long{CONFIG_MAPPING_NAMES[base_model_type]}"
    # the table also has the Long classes, under model types that start with "long_"
    types = [model_type for model_type, config in CONFIG_MAPPING_NAMES.items() if config == name]
    taken = any(not model_type.startswith("long_") for model_type in types)
    return "LongAttention" if taken else "Long"


@cache
def first_word(base_model_type: str) -> str:
    """The first word of a base's class names, for example "Qwen2" from "Qwen2MoeConfig"."""
    return str(re.findall("[A-Z]+[a-z0-9]*|$", base_config_name(base_model_type).removesuffix("Config"))[0])


def long_config(module: str, mixin: type[Any], base: type[PreTrainedConfig], **attributes: Any) -> type[Any]:
    """Make the Long config class of a ``base`` config.

    Args:
        module: name of the family's module, to which the class belongs.
        mixin: mixin of the class, for example ``LongGridConfig``.
        attributes: further attributes of the class.
    """
    attributes |= {
        "__module__": module,
        "__doc__": f"{base.__name__} with {mixin.adds}.",
        "model_type": f"long_{base.model_type}",
    }
    return type(f"{long_prefix(base.model_type)}{base.__name__}", (mixin, base), attributes)


def module_name(model_type: str) -> str:
    """The module name of a model type, in transformers and in this package: "xlm-roberta" -> "xlm_roberta"."""
    return model_type.replace("-", "_")


def base_package(base_model_type: str) -> str:
    """transformers' package of a model type: ``"gemma3_text"`` -> ``"transformers.models.gemma3"``."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    return f"transformers.models.{model_type_to_module_name(base_model_type)}"


def long_names(base_model_type: str, classes: tuple[str, ...]) -> dict[str, str]:
    """Name of every model class of a base -> name of its Long class. No model is imported.

    Args:
        base_model_type: transformers' ``model_type`` of the base.
        classes: the family's ``classes``; empty for all models of the package.
    """
    names = classes or filter(MODEL_NAME.search, dir(importlib.import_module(base_package(base_model_type))))
    prefix = long_prefix(base_model_type)
    return {name: f"{prefix}{name}" for name in names if "pretrained" not in name.lower()}


@cache
def exported_names(base_model_type: str) -> tuple[str, ...]:
    """The family's :attr:`Family.exports`. A family without a file is not imported for them."""
    if module_name(base_model_type) in module_names("families"):
        return FAMILIES[base_model_type].exports
    row = family_rows()[module_name(base_model_type)][1]
    config = base_config_name(base_model_type)
    models = long_names(base_model_type, tuple(row.get("classes", ()))).values()
    # some model types have only a tokenizer, and no config in their package
    defined = config in dir(importlib.import_module(base_package(base_model_type)))
    return (f"{long_prefix(base_model_type)}{config}", *models) if defined else tuple(models)


_REGISTERED: dict[str, Family] = {}
"""Model type of the base -> the family, for families that are imported already."""


def attention_names(module: Any) -> AttentionNames:
    """The unusual names in an attention module, which the family of its package knows. The usual names for modules of
    other packages."""
    for parent in type(module).__mro__:
        package = parent.__module__.rpartition(".")[0]
        for family in _REGISTERED.values():
            if family.base_package == package:
                return family.attention
    return AttentionNames()


class _Families(Mapping[str, Family]):
    """Base model type -> family. A family is imported on first use, from the module of its name in
    :mod:`hf_longattn.families`. That module may be a file, or made from a row of ``families.json``."""

    @cached_property
    def _names(self) -> list[str]:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        return family_names(CONFIG_MAPPING_NAMES)

    def __getitem__(self, base_model_type: str) -> Family:
        """The family of a base's model type, whose module is imported.

        Raises:
            KeyError: the model type has no family.
            OptionError: the module does not define the family of its name.
        """
        if base_model_type not in self._names:
            raise KeyError(base_model_type)
        module = load_module("families", module_name(base_model_type))
        family: Any = vars(module).get("FAMILY")
        complete = isinstance(family, Family) and "__getattr__" in vars(module)
        if not complete or family.base_model_type != base_model_type:
            raise OptionError(
                f"{module.__file__}:1 is named after the model type {base_model_type!r}, so it must have the FAMILY = "
                "Family(...) of that type, with Family from hf_longattn.modeling.classes."
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
    """The family of a Long config or a base's config; ``None`` for other models."""
    return FAMILIES.get(getattr(config, "base_model_type", getattr(config, "model_type", "")))


def family_in(values: Mapping[str, Any]) -> Family | None:
    """The family of a ``config.json`` with these values; ``None`` for other models."""
    return FAMILIES.get(str(values.get("model_type")).removeprefix("long_"))


def longest_input(config: Any) -> int | None:
    """Maximum number of tokens of a model's input, special tokens included; ``None`` if unlimited."""
    limit = getattr(config, "max_position_embeddings", None)
    family = known_family(config)
    if family is None:
        limit = next((getattr(config, name) for name in LENGTHS if hasattr(config, name)), None)
    elif isinstance(limit, int):
        limit = family.longest(config)
    return limit if isinstance(limit, int) and limit > 0 else None


def length_before_conversion(config: Any) -> int | None:
    """Maximum tokens of the short checkpoint from which a long one was converted. ``None`` if the config does not say.

    Raises:
        Exception: any error of the config class about invalid values.
    """
    before = getattr(config, "extended_from", None)
    if not isinstance(before, dict):
        return None
    # a config with the values of the short checkpoint
    long_fields = ("max_decoder_position_embeddings", "long_image_size", "long_audio_seconds")
    values = {name: value for name, value in config.to_dict().items() if name not in long_fields}
    short_config = type(config).from_dict({**values, **before})
    length: Any = FAMILIES[config.base_model_type].longest(short_config)
    return length if isinstance(length, int) else None


def family_for_class(name: str) -> Family | None:
    """The family with the public class ``name``; ``None`` if there is none. Imports few families.

    Raises:
        CheckpointError: the base has this head, but the family has no Long class for it. The message says what to load
            instead.
    """
    files = module_names("families")
    # several families may have the prefix of a class: "gemma3" and "gemma3_text" that of LongGemma3Model
    bases = [base for base in FAMILIES if name.startswith(f"{long_prefix(base)}{first_word(base)}")]
    # families with a file come last, because their names are known only after an import
    for base in sorted(bases, key=lambda base: module_name(base) in files):
        if name in exported_names(base):
            return FAMILIES[base]
    for base in bases:
        head = name.removeprefix(long_prefix(base))
        if head not in dir(importlib.import_module(base_package(base))):
            continue
        family = FAMILIES[base]
        if family.classes:
            long_classes = " or ".join(sorted(family.model_classes.values()))
            # not an AttributeError, which AutoModel would report as a bug in transformers
            raise CheckpointError(
                f"{head} has no Long class; load the model as {long_classes}, or the checkpoint that it was made from "
                f"as {head}."
            )
    return None


def known_length(config: Any, tokenizer: Any | None, model: Any) -> int | None:
    """Maximum tokens of an input, special tokens included. It is the smallest number among those of the config, the
    tokenizer and the model's position tables; ``None`` without any.

    model: a model of any architecture.
    """
    lengths = [longest_input(config), getattr(tokenizer, "model_max_length", None)]
    # positions start after the row of the padding id (Longformer)
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
            lengths.append(table.num_embeddings - table.padding_idx - 1)
    return min((int(length) for length in lengths if length and 0 < length < UNLIMITED_LENGTH), default=None)
