"""Long attention for models of any architecture without a Long class. ``enable_long_attention``, and the classes that
AutoModel loads.

The ``config.json`` of a saved model has a ``model_type`` and a class name that only this package registers with
transformers. Where this package is not imported, AutoModel and serving engines therefore refuse the folder. They do
not run its weights with the architecture's own attention.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from ..configuration import LongAttentionConfig
from ..errors import BackendError, CheckpointError, OptionError, checkpoint_errors, listed
from ..files import FORMAT, FORMAT_FIELD, GENERIC_CLASS, GENERIC_TYPE, check_config, is_generic, is_long, named_class
from ..loading import lost_head, weight_files
from ..mechanisms.common.options import FULL_DECODING
from ..memory.decode_cache import prompt_read
from ..names import require
from .attach.attachment import attach_mechanisms
from .attach.attention_sites import attention_sites, layer_mechanisms
from .attach.global_mask import arguments_by_name, check_globals
from .attach.memory_tokens import recursion_of
from .attach.tower_grids import hook_grid
from .attach.weights import LoadsMechanisms
from .backend import BACKEND
from .classes import check_interface, is_model_class
from .family.definition import TOWER_CONFIG, Family
from .family.definition import family_in as named_family
from .family.long_config import LongConfig, keeps_own_attention, runs_mechanisms
from .family.plain_spec import PlainSpec
from .family.towers_spec import TOWERS, check_towers

OWN_STACK = "_model"
"""Suffix of the attribute of a tower that has the model's own config. It is left out of the tower's name."""


class GenericConfig:
    """Mixin before an architecture's config class that marks saved files as those of a model with mechanisms.

    In memory, the model type is still the architecture's, because transformers looks up weight conversions and
    processors by the model type.
    """

    score_cap: ClassVar[None] = None
    registered_type: ClassVar[str]  # the model type in saved files

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The architecture's ``from_dict``, for a ``config.json`` that :meth:`to_json_string` wrote."""
        check_config(config_dict)
        classes = [str(name).removeprefix(GENERIC_CLASS) for name in config_dict.get("architectures") or []]
        model_type = str(config_dict.get("model_type")).removeprefix(GENERIC_TYPE)
        values = {**config_dict, "model_type": model_type, "architectures": classes}
        return super().from_dict(values, **kwargs)  # type: ignore[misc]

    def to_json_string(self, use_diff: bool = True) -> str:
        """The text of ``config.json``, with the names of a model with mechanisms."""
        values = json.loads(super().to_json_string(use_diff=use_diff))  # type: ignore[misc]
        values["model_type"] = GENERIC_TYPE + str(values["model_type"])
        if values.get("architectures"):
            values["architectures"] = [GENERIC_CLASS + str(name) for name in values["architectures"]]
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # pickle finds the architecture's config class by name, but not this class, which is created on first use
        return _empty_config, (type(self).__mro__[2],), self.__dict__


@cache
def _generic_class(base: Any) -> Any:
    """The config class of an architecture with the mixin :class:`GenericConfig`. ``registered_type`` is the name under
    which transformers knows it."""
    # transformers generates an __init__ for config classes without one
    members = {"__module__": base.__module__, "__init__": base.__init__}
    members["registered_type"] = f"{GENERIC_TYPE}{base.model_type}"
    return type(GENERIC_CLASS + base.__name__, (GenericConfig, base), members)


class GenericModel(LoadsMechanisms):
    """Mixin before an architecture's model class that attaches mechanisms while the model is built.

    Once an instance is loaded or created from a config, its class becomes ``plain_class``, the architecture's class.
    """

    plain_class: ClassVar[Any]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        _run_mechanisms(self, read_attention(config.long_attention))

    def post_init(self) -> None:
        """Attach the mechanisms, so that transformers finds their parameters."""
        _attach(self, read_attention(getattr(self.config, "long_attention", None) or {}))
        super().post_init()

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        model = super()._from_config(config, **kwargs)
        model.__class__ = cls.plain_class  # this class adds no state
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        model.__class__ = cls.plain_class
        return loaded


@cache
def generic_model_class(base: Any) -> Any:
    """The model class of an architecture with the mixin :class:`GenericModel`. It has the architecture's name, by
    which transformers looks up renamed weights."""
    require("overridden_methods")
    members = {"__module__": base.__module__, "plain_class": base, "config_class": _generic_class(base.config_class)}
    return type(base.__name__, (GenericModel, base), members)


def loading_class(model: PreTrainedModel) -> Any:
    """The class whose ``from_pretrained`` loads a model like ``model``, mechanisms included."""
    base: Any = type(model)
    return generic_model_class(base) if isinstance(model.config, GenericConfig) else base


@dataclass(frozen=True)
class PlainFamily(Family):
    """The family of an architecture without Long classes. It is not registered."""

    two_stacks = False  # ``long_attention`` holds for the layers of encoder and decoder alike

    def __post_init__(self) -> None:
        """Leave out the check and the registration of :class:`Family`."""

    @cached_property
    def model_classes(self) -> dict[str, str]:
        """Name of every model class that the base's package exports -> name of its class with mechanisms."""
        return {
            name: f"{GENERIC_CLASS}{name}"
            for name in dir(sys.modules[self.base_package])
            if is_model_class(getattr(transformers, name, None))
        }

    def model_class(self, name: str) -> type[Any]:
        return class_for_auto(name)


@cache
def plain_family(config_class: Any) -> PlainFamily:
    return PlainFamily(_generic_class(config_class), spec=PlainSpec())


def family_in(values: Mapping[str, Any]) -> Family | None:
    """The family of a ``config.json`` with these values, including files from ``--generic``. ``None`` for other
    models."""
    if not is_generic(values):
        return named_family(values)
    model_type = str(values["model_type"]).removeprefix(GENERIC_TYPE)
    return plain_family(CONFIG_MAPPING[model_type]) if model_type in CONFIG_MAPPING else None


def class_problem(name: str, folder: Path, values: Mapping[str, Any], *, allow_pickle: bool = False) -> str:
    """Why a checkpoint must name the class that saved it, as a sentence. Empty if it names one class, or if its
    weights have no head that would be lost without a name.

    A folder without weights loses no head. Plans of Hub repositories have no weights, for example.

    Args:
        name: name of the checkpoint, as the user typed it.
        folder: the checkpoint's folder.
        values: its config.json.
        allow_pickle: whether tensors of .bin files are read.
    """
    classes = values.get("architectures")
    if isinstance(classes, list) and len({*map(str, classes)}) > 1:
        return (
            f"The config.json of {name!r} names the classes {classes!r:.200}, and several are not supported; leave "
            "the one that saved the files in architectures."
        )
    named = named_class(values, "")
    converted = is_long(values)
    family = family_in(values)
    model_type = str(values.get("model_type"))
    if named and (converted or hasattr(transformers, named)):
        return ""
    if family is None and isinstance(MODEL_MAPPING_NAMES.get(model_type), str):
        family = plain_family(CONFIG_MAPPING[model_type])
    files = weight_files(folder)
    if family is None or not files or not all(file.is_file() for file in files):
        return ""
    if files[0].suffix != ".safetensors" and not allow_pickle:
        return ""
    # compare the weights with the class without a head
    config_class: Any = family.base_config_class
    base = family.base_class(family.base_model_name)
    loadable = {name: name for name in family.model_classes}
    if converted:
        config_class = family.config_class
        base = family.model_class(family.base_model_name)
        loadable = {**family.model_classes}
    with checkpoint_errors(f"The config.json of {name!r} is not valid for {model_type}"):
        config = config_class.from_dict(dict(values))
    head = lost_head(name, folder, base, allow_pickle=allow_pickle, config=config)
    if not head:
        return ""
    problem = "its config.json names no class"
    if named:
        problem = f"its config.json names the class {named!r:.99}, which is not supported"
    headless = loadable.pop(family.base_model_name)
    return (
        f"{name!r} has weights that a {headless} does not read, {listed(head)}, and {problem}; write the class that "
        f'saved them there as "architectures", one of {listed(loadable.values())}, or "architectures": '
        f'["{headless}"] to leave them out.'
    )


def check_class(name: str, folder: Path, values: Mapping[str, Any], *, allow_pickle: bool = False) -> None:
    """Raise :class:`CheckpointError` if a checkpoint must name its class; see :func:`class_problem`."""
    if problem := class_problem(name, folder, values, allow_pickle=allow_pickle):
        raise CheckpointError(problem)


def class_for_auto(name: str) -> Any:
    """The config or model class with a registered name. The class ``LongGenericYolosModel``, for example, loads
    instances of ``YolosModel``."""
    base = getattr(transformers, name.removeprefix(GENERIC_CLASS))
    return _generic_class(base) if issubclass(base, PreTrainedConfig) else generic_model_class(base)


def _empty_config(base: Any) -> Any:
    """A config of ``base`` with :class:`GenericConfig`, whose fields pickle sets afterwards."""
    config_class = _generic_class(base)
    return config_class.__new__(config_class)


ModelAttention = LongAttentionConfig | Mapping[str, LongAttentionConfig]
"""The attention of a model, or of its towers by name."""


def mark_generic(config: Any, attention: ModelAttention) -> None:
    """Write ``attention`` into an architecture's config as ``long_attention``. A file saved from this config is marked
    by :class:`GenericConfig`."""
    setattr(config, FORMAT_FIELD, FORMAT)
    if isinstance(attention, LongAttentionConfig):
        config.long_attention = attention.to_dict()
    else:
        config.long_attention = {TOWERS: {name: tower.to_dict() for name, tower in attention.items()}}
    if not isinstance(config, GenericConfig):
        base: Any = type(config)
        config.__class__ = _generic_class(base)


def read_attention(chosen: Mapping[str, Any] | LongAttentionConfig) -> ModelAttention:
    """Parse a ``long_attention``. Returns the attention of a model, or of each tower by name.

    Raises:
        OptionError: no mechanism is named, or there are towers and also a mechanism for all of them.
    """
    if not isinstance(chosen, Mapping) or TOWERS not in chosen:
        if isinstance(chosen, Mapping) and not ({"mechanism", "layers"} & chosen.keys()):
            raise OptionError(
                "long_attention names no mechanism; give for example {'mechanism': 'window', 'window': 512}."
            )
        return LongAttentionConfig.from_dict(chosen)
    if others := sorted(chosen.keys() - {TOWERS}):
        raise OptionError(
            f"long_attention gives mechanisms by tower and {others[0]!r} for all; put {others[0]!r} into each tower."
        )
    return {name: LongAttentionConfig.from_dict(tower) for name, tower in chosen[TOWERS].items()}


def towers_of(model: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """The towers of a model by name. A tower is a part with a config of its own, and has the config's name: the part
    with ``vision_config`` is the tower ``vision``.

    If there are such parts, further parts that share the model's config and contain no tower are towers too. They are
    named after their attribute: CSM's ``backbone_model`` is the tower ``backbone``.
    """
    towers: dict[str, PreTrainedModel] = {}
    inner_models = [part for part in stacks_of(model) if part is not model]
    for field in model.config.sub_configs:
        config = getattr(model.config, field, None)
        tower = next((part for part in inner_models if part.config is config), None)
        if tower is not None:
            towers[field.removesuffix(TOWER_CONFIG)] = tower
    if not towers:
        return {}
    for name, part in model.named_children():
        shares_config = isinstance(part, PreTrainedModel) and part.config is model.config
        if shares_config and not set(towers.values()) & set(part.modules()):
            towers[name.removesuffix(OWN_STACK)] = part
    return towers


def set_implementation(part: PreTrainedModel, implementation: str | None, *, is_tower: bool) -> None:
    """Set the attention implementation of a model, or of a single tower.

    is_tower: whether only the tower's own config is set. Its config may contain configs of other towers.
    """
    for stack in stacks_of(part):
        stack.set_attn_implementation({"": implementation} if is_tower else implementation)


def stacks_of(model: nn.Module) -> list[PreTrainedModel]:
    """The model itself and those of its modules that are models of transformers. Each may have its own config."""
    return [module for module in model.modules() if isinstance(module, PreTrainedModel)]


def _parts(model: PreTrainedModel, attention: ModelAttention) -> list[tuple[PreTrainedModel, LongAttentionConfig]]:
    """The model with its attention, or each tower that ``attention`` names with the tower's attention. Raises
    :class:`OptionError` if the model has no tower of that name."""
    if isinstance(attention, LongAttentionConfig):
        return [(model, attention)]
    towers = towers_of(model)
    check_towers(attention, [*towers], type(model).__name__)
    return [(towers[name], tower_attention) for name, tower_attention in attention.items()]


def _attach(model: PreTrainedModel, attention: ModelAttention) -> None:
    check_interface(type(model))
    for part, part_attention in _parts(model, attention):
        attach_mechanisms(part, part_attention)


Model = TypeVar("Model", bound=PreTrainedModel)


def enable_long_attention(
    model: Model, long_attention: Mapping[str, Any] | LongAttentionConfig | None = None
) -> Model:
    """Replace the self-attention of ``model`` in place. Positions, weights and cross-attention do not change.

        model = ViTModel.from_pretrained(...)
        enable_long_attention(model, {"mechanism": "window", "window": 64})

    Without ``long_attention``, the model computes its own attention, as with ``attn_implementation="longattn"``.

    Works for every architecture on transformers' AttentionInterface (Whisper, YOLOS, ModernBERT, BART …). The
    mechanism also replaces sliding windows. ``save_pretrained`` writes a folder that AutoModel reads after
    ``import hf_longattn``. ``model.set_attn_implementation("sdpa")`` switches back in memory.

    Unlike Long classes, the model keeps transformers' cache and ``generate``. In a layer with a sliding window, the
    cache keeps one window, so decoding with a mechanism that sees more tokens is refused. For RoBERTa's decoders,
    ``generate`` counts positions from 0, although the forward pass counts them from the padding id on
    (``LongRobertaForCausalLM`` counts from the padding id in both).

    Args:
        model: any model of transformers.
        long_attention: the mechanism of each layer; ``None`` for the model's own attention. Layers of encoder and
            decoder are counted separately. In a model with several towers (CLIP, LLaVA),
            ``{"towers": {"vision": {"mechanism": "window", "window": 64}}}`` sets the mechanism of one tower; the
            other towers keep the base's attention. Images packed into one row (Pixtral, Qwen-VL) are separate
            sequences without a grid. If Qwen2.5-VL's layers have windows, the mechanism runs within each window.

    Returns:
        The same model.

    Raises:
        BackendError: the architecture is not on the AttentionInterface or has no attention, or the model is a Long
            model.
        OptionError: ``long_attention`` is invalid, or names a tower that does not exist.
    """
    if isinstance(getattr(model, "config", None), LongConfig):
        raise BackendError(
            f"{type(model).__name__} has its mechanisms from its config; load the checkpoint with another "
            "long_attention instead."
        )
    if long_attention is None:
        check_interface(type(model))
        if layer_mechanisms(model):
            raise BackendError(
                f"{type(model).__name__} has mechanisms already; load the checkpoint again for the model's own "
                "attention."
            )
        model.set_attn_implementation(BACKEND)
        return model
    attention = read_attention(long_attention)
    _attach(model, attention)
    _run_mechanisms(model, attention)
    return model


def _run_mechanisms(model: Any, attention: ModelAttention) -> None:
    """Make ``model`` run its attached mechanisms, and store them in its config.

    Raises:
        BackendError: a part of the model cannot switch to ``longattn``, or a mechanism has memory tokens.
    """
    if recursion_of(model) is not None:
        raise BackendError(
            "A mechanism with memory tokens passes them through a whole model, which only Long classes do; "
            "load the checkpoint with a Long class and long_attention in its config, or choose another mechanism."
        )
    for part, _ in _parts(model, attention):
        set_implementation(part, BACKEND, is_tower=part is not model)
        for stack in stacks_of(part):  # an encoder and a decoder may have separate configs
            hook_grid(stack)
        for site in attention_sites(part):
            if keeps_own_attention(site.module):
                raise BackendError(
                    f"{type(model).__name__} keeps its own attention in {site.name}, so it cannot be replaced; "
                    "set attn_implementation='longattn' on the config of that part yourself, or leave this model as "
                    "it is."
                )
    model.register_forward_pre_hook(_check_globals, with_kwargs=True)
    if any(getattr(layer.options, FULL_DECODING, None) for layer in layer_mechanisms(model)):
        # ``generate`` has to tell the mechanisms apart pieces of a prompt and generated tokens
        model._prefill = partial(_prefill, model)
    mark_generic(model.config, attention)


def _prefill(
    model: Any, input_ids: Tensor, generation_config: Any, model_kwargs: Any, *args: Any, **kwargs: Any
) -> Any:
    """Run transformers' ``_prefill``, the pass of ``generate`` over a prompt, without counting pieces of the prompt as
    decoding steps. :class:`~.mixin.LongGenerationMixin` does the same for Long classes."""
    with prompt_read(model.config, input_ids, generation_config, model_kwargs):
        return type(model)._prefill(model, input_ids, generation_config, model_kwargs, *args, **kwargs)


def _check_globals(model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a model without a Long class. Raises :class:`InputError` for a ``global_attention_mask``
    that no layer takes."""
    if kwargs.get("global_attention_mask") is not None and runs_mechanisms(model):
        check_globals(model, arguments_by_name(model, args, kwargs))
