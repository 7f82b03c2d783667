"""The interface of native twins: the long models that a stock architecture can hold. Also its config and tensor names.

Software that knows the stock architecture can serve a twin's checkpoint without this package. Each twin is one file with a class under
``@register_twin``. Other modules choose a twin, write it, account for every tensor, and compare it with the long model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
import transformers
from torch import Tensor, nn

from ...configuration import LongAttentionConfig
from ...engines.common.call import UNBOUNDED
from ...errors import RegistrationError, check_registration, defined_at, nearest
from ...inputs.common.base import kind_of
from ...lazy import load_modules
from ...mechanisms import Mechanism
from ...mechanisms.common.exact import full_of
from ...mechanisms.common.locality import band_of
from ...mechanisms.common.registry import prototype
from ...modeling.family.definition import FAMILIES, Family
from ...modeling.family.grid_config import TILE
from ...modeling.family.sliding_window import with_base_windows
from ..architectures import NAMES, OWN_FIELDS
from ..long_models.base import TensorRename

T = TypeVar("T", bound="type[NativeTwin]")


@dataclass(frozen=True)
class LongModel:
    """A long model as its config describes it.

    class_name: its Long class.
    masked: the caller passes a ``global_attention_mask`` for every text, so the config's global tokens do not matter.
    """

    config: Any
    class_name: str
    family: Family
    masked: bool = False

    @property
    def base(self) -> str:
        """transformers' model type of the base."""
        return self.family.base_model_type

    @cached_property
    def head(self) -> str:
        """Name of the base class, ``"BertForMaskedLM"`` for a ``LongBertForMaskedLM``."""
        return self.family.base_of(self.class_name)

    @property
    def two_stacks(self) -> bool:
        """Whether the model has both an encoder and a decoder."""
        return self.family.two_stacks and bool(self.config.is_encoder_decoder)

    @cached_property
    def causal(self) -> bool:
        return bool(self.config.attending[1])

    @cached_property
    def layers(self) -> tuple[Mechanism, ...]:
        """The mechanism of every layer; of the encoder in an encoder-decoder."""
        return _mechanisms(self.config.long_attention, self.config.attending[0])

    @cached_property
    def decoder_layers(self) -> tuple[Mechanism, ...]:
        """The mechanism of every decoder layer of an encoder-decoder."""
        return _mechanisms(self.config.decoder_attention, self.config.decoder_layers) if self.two_stacks else ()

    @cached_property
    def length(self) -> int:
        """Maximum number of tokens."""
        return self.family.longest(self.config)

    def values(self) -> dict[str, Any]:
        """Config values, without the model's identity and without fields that only Long configs have."""
        ours = {*NAMES, *OWN_FIELDS}
        return {name: value for name, value in with_base_windows(self.config.to_dict()).items() if name not in ours}


def _mechanisms(attention: LongAttentionConfig, layers: int) -> tuple[Mechanism, ...]:
    return tuple(prototype(*attention.for_layer(layer)) for layer in range(layers))


class NativeTwin(ABC):
    """One stock architecture; all methods read configs only."""

    model_type: ClassVar[str]
    """transformers' model type of the twin."""
    families: ClassVar[frozenset[str]] = frozenset()
    """Base model types of the long models that the twin can hold."""
    computes: ClassVar[tuple[type[Mechanism], ...]] = ()
    """Mechanisms other than full attention that the twin's layers can compute."""
    rank: ClassVar[int] = 50
    """If several twins fit, the lowest rank is chosen: the architecture that most serving engines know."""
    takes_globals: ClassVar[bool] = False
    """Whether the twin's forward pass takes ``global_attention_mask``."""
    only_length: ClassVar[bool] = False
    """Whether the twin takes only texts of exactly its maximum length, without padding."""

    def takes(self, model: LongModel) -> bool:
        """Whether the twin has the same layers as the model's base."""
        return model.base in self.families

    def twin_model_type(self, model: LongModel) -> str:
        """transformers' model type of the twin for this model."""
        return self.model_type

    @abstractmethod
    def refusal(self, model: LongModel) -> str | None:
        """Reason why the twin does not compute the same, as a sentence. It names the layer. ``None`` if the twin does."""

    @abstractmethod
    def config_values(self, model: LongModel) -> dict[str, Any]:
        """Values of the twin's config."""

    def class_name(self, model: LongModel) -> str:
        """Name of the twin's class with the same head, for example "LongformerForMaskedLM". transformers may have no such class."""
        stems = (stem_of(model.base), stem_of(self.twin_model_type(model)))
        return model.head.replace(*stems, 1)

    def rename(self, name: str, model: LongModel) -> tuple[TensorRename, ...]:
        """The new names of a tensor, by default its own name. Several renamings without a change make copies."""
        return (TensorRename(name),)

    def added(self, model: LongModel) -> Mapping[str, Callable[[tuple[int, ...]], Tensor]]:
        """Tensors that the long model lacks: name -> their values for a shape."""
        return {}

    def note(self, model: LongModel) -> str:
        """A remark for users of the twin; empty by default."""
        return ""

    def config(self, model: LongModel) -> Any:
        """The twin's config."""
        config_class: Any = transformers.CONFIG_MAPPING[self.twin_model_type(model)]
        stray = set(model.family.base_config_class.__dataclass_fields__) - set(config_class.__dataclass_fields__)
        values = {name: value for name, value in self.config_values(model).items() if name not in stray}
        return config_class.from_dict({**values, "architectures": [self.class_name(model)]})

    def skeleton(self, model: LongModel) -> nn.Module:
        """The twin's model on the meta device."""
        with torch.device("meta"):
            built: nn.Module = getattr(transformers, self.class_name(model))(self.config(model))
        return built


def stem_of(model_type: str) -> str:
    """The start of an architecture's class names: ``"roberta"`` -> ``"Roberta"``."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    family = FAMILIES.get(model_type)
    return str(MODEL_MAPPING_NAMES[model_type] if family is None else family.base_model_name).removesuffix("Model")


TWINS: dict[str, NativeTwin] = {}


def register_twin(name: str) -> Callable[[T], T]:
    """Class decorator that makes a :class:`NativeTwin` known under ``name``.

    Raises:
        RegistrationError: it is not a NativeTwin, lacks a method, the name is taken, or transformers does not know one of its model types.
    """

    def register(cls: T) -> T:
        check_registration("native twin", name, cls, NativeTwin, type(TWINS[name]) if name in TWINS else None)
        _check_model_types(name, cls)
        TWINS[name] = cls()
        return cls

    return register


def _check_model_types(name: str, cls: type[NativeTwin]) -> None:
    """Refuse model types unknown to transformers, and families that the package does not have."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    here = f"The native twin {name!r} ({defined_at(cls)})"
    model_type = getattr(cls, "model_type", None)
    if model_type is None and cls.twin_model_type is NativeTwin.twin_model_type:
        raise RegistrationError(f"{here} has no model_type; write the one of its architecture in transformers.")
    if model_type and model_type not in CONFIG_MAPPING_NAMES:
        close = nearest(model_type, CONFIG_MAPPING_NAMES)
        raise RegistrationError(f"{here} has the model_type {model_type!r}, which transformers does not know.{close}")
    for family in sorted(cls.families):
        if family not in FAMILIES:
            raise RegistrationError(f"{here} names {family!r} among its families, and there is no such family.{nearest(family, FAMILIES)}")


def native_twins() -> tuple[NativeTwin, ...]:
    """Every twin, in the order in which :func:`choose_twin` asks them."""
    load_modules("conversion.twins")
    return tuple(TWINS[name] for name in sorted(TWINS, key=lambda name: (TWINS[name].rank, name)))


@dataclass(frozen=True)
class TwinChoice:
    """The twin of a long model, or ``None`` with a reason."""

    twin: NativeTwin | None
    class_name: str
    model_type: str
    reason: str
    note: str = ""

    def describe(self) -> str:
        """The choice as text, for a table."""
        if self.twin is None:
            return f"none: {self.reason}"
        return f"{self.class_name} of transformers" + (f" ({self.note})" if self.note else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        if self.twin is None:
            return {"class": None, "reason": self.reason}
        return {"class": self.class_name, "model_type": self.model_type, **({"note": self.note} if self.note else {})}


def choose_twin(model: LongModel) -> TwinChoice:
    """The first twin that fits the model. Otherwise the reason of a twin that comes near."""
    if kind_of(model.family).apart:
        return TwinChoice(None, "", "", f"the towers of a {model.class_name} have mechanisms apart; convert a tower alone.")
    if exact := next((full.max_length for layer in model.layers if (full := full_of(layer)) is not None), 0):
        return TwinChoice(None, "", "", f"No stock architecture has exact_length={exact}; convert with --option exact_length=0.")
    reasons: list[tuple[bool, str]] = []
    other_layer = next((layer for layer in model.layers if not is_full(layer, model.causal)), None)
    for twin in native_twins():
        if not twin.takes(model):
            continue
        name, reason = twin.class_name(model), twin.refusal(model)
        if not reason and not hasattr(transformers, name):
            reason = f"transformers has no {name} with the model's head."
        if reason is None:
            return TwinChoice(twin, name, twin.twin_model_type(model), "", twin.note(model))
        reasons.append((other_layer is None or isinstance(other_layer, twin.computes), reason))
    near = [reason for fits, reason in reasons if fits]
    return TwinChoice(None, "", "", (near[0] if other_layer is None else near[-1]) if near else _no_twin(model))


def is_full(mechanism: Mechanism, causal: bool) -> bool:
    """Whether a layer is full attention at any length."""
    band = band_of(mechanism, causal)
    return band is not None and band[0] == UNBOUNDED


def _no_twin(model: LongModel) -> str:
    for where, layers, causal in (("Layer", model.layers, model.causal), ("Decoder layer", model.decoder_layers, True)):
        for index, mechanism in enumerate(layers):
            if mechanism.relative is not None:
                return f"{where} {index} adds relative positions ({mechanism.options.relative}), which no stock architecture has."
            if not is_full(mechanism, causal):
                kind = "a window in" if band_of(mechanism, causal) is not None else f"the mechanism {mechanism.name!r} in"
                return (
                    f"{where} {index} has {mechanism.name!r}, and no stock architecture has {kind} the layers of a {stem_of(model.base)}."
                )
    return f"No stock architecture has the class of a {model.class_name}."


def decoder_refusal(model: LongModel) -> str | None:
    """Reason why the decoder of an encoder-decoder is not a stock decoder (full attention). ``None`` if it is."""
    for index, mechanism in enumerate(model.decoder_layers):
        if not is_full(mechanism, True):
            return f"Decoder layer {index} has {mechanism.name!r}, and stock decoders beside an encoder have full attention."
    return None


def tiled_refusal(model: LongModel) -> str | None:
    """Reason why the stock model has other positions for larger inputs, or none. ``None`` if it has the same."""
    if model.family.rule.reads != "grid" or model.config.position_extension != TILE:
        return None
    return f"Its positions are tiled, and a plain {model.head} interpolates them; convert with --positions interpolate."


def band_refusal(model: LongModel) -> tuple[str | None, list[int | None]]:
    """How many tokens back each layer sees, ``None`` for all: ``(None, lookbacks)``. ``(reason, [])`` if a layer is no plain window."""
    lookbacks: list[int | None] = []
    for index, mechanism in enumerate(model.layers):
        band = band_of(mechanism, model.causal)
        if band is None or not (model.causal or band[0] == band[1]):
            return f"Layer {index} has {described(mechanism)}, which no stock architecture computes.", []
        lookbacks.append(None if band[0] == UNBOUNDED else band[0])
    return None, lookbacks


def described(mechanism: Mechanism) -> str:
    """A mechanism with the options that are not its defaults: ``'window' with num_sinks=4``."""
    changed = mechanism.options.changed()
    return repr(mechanism.name) + (f" with {', '.join(changed)}" if changed else "")


def one_width(widths: list[int | None]) -> tuple[str | None, int | None]:
    """The common width of all windows: ``(None, width)``. ``(None, None)`` without windows, ``(reason, None)`` if widths differ."""
    first: tuple[int, int] | None = None
    for index, width in enumerate(widths):
        if width is not None and first is not None and width != first[1]:
            return f"Layer {index} has another window than layer {first[0]}, and a stock architecture has one width for all windows.", None
        first = (index, width) if first is None and width is not None else first
    return None, None if first is None else first[1]
