"""The fields and methods of Long configs, such as ``long_attention`` and cache layer types."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from transformers.utils import logging

from ...configuration import LongAttentionConfig
from ...errors import BackendError, OptionError
from ...files import FORMAT, FORMAT_FIELD, check_config
from ...names import BACKEND, LOGGER, missing
from .definition import FAMILIES
from .input_spec import InputSpec
from .rotary import plan_rotary
from .sliding_window import (
    BASE_WINDOWS,
    FULL,
    SERVING_WINDOW_FIELDS,
    VLLM,
    equals_base,
    flash_takes_windows,
    own_windows,
    serving_window_fields,
    vllm_windows,
    with_base_windows,
    with_own_windows,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as ConfigMixin
else:
    ConfigMixin = object


logger = logging.get_logger(LOGGER)

IMPLEMENTATION_FIELD = "_attn_implementation_internal"
"""The field in which transformers stores the attention implementation. :class:`LongConfig` checks its values."""
BASE_ATTENTION = "_base_attention"
"""The attribute set by ``model.use_base_attention()``. It is not saved."""
LENGTH_FIELDS = ("max_position_embeddings", "rope_parameters", "original_max_position_embeddings")
"""Fields of the base that change with the maximum length."""
ROPE_FIELDS = ("rope_parameters", "rope_scaling", "rope_theta")
"""Fields that set rotary positions."""
DEFAULTS = ("sdpa", "eager")
"""transformers' default attention implementations. Scripts often name them without intending to replace the
mechanisms."""


class LongConfig(ConfigMixin):
    """Mixin before the base's config class: ``class LongBertConfig(LongConfig, BertConfig)``.

    long_attention: mapping or :class:`hf_longattn.LongAttentionConfig`, saved in ``config.json`` as a mapping. The
        default is the first of these that exists: :meth:`default_attention`; the base's sliding window, if all layers
        have one; Longformer's defaults. A layer with a sliding window of the base keeps it unless ``long_attention``
        names the layer (:mod:`hf_longattn.modeling.family.sliding_window`). Raises :class:`OptionError` for a layer
        that does not exist, and for a mechanism without the form (causal or bidirectional) that a layer needs.
    position_extension: how a shorter checkpoint's position table is extended while loading: ``"tile"``,
        ``"interpolate"``, ``"stretch:20"``, or ``"none"`` for a model without absolute positions (see
        :mod:`hf_longattn.positions.tables`).
    question_separator_id: in question answering, the id of the token between question and document. All tokens before
        the document are global then, unless the call has a ``global_attention_mask``. With ``None``, the mechanism's
        options choose global tokens. Conversion and ``longattn train qa`` set the id from the tokenizer
        (:mod:`hf_longattn.modeling.attach.global_mask`).
    global_token_ids: ids of tokens that are always global, unless the call has a ``global_attention_mask``. With
        ``None``, the mechanism's options choose global tokens.
    extended_from: the short model's values of fields that a conversion has changed; set automatically.

    ``from_pretrained`` also reads the folder of a base model, for example
    ``LongBertConfig.from_pretrained("bert folder", max_position_embeddings=4096, long_attention={...})``.
    It then scales rotary positions as a conversion to that length does, unless ``rope_parameters`` are given.
    """

    base_model_type: ClassVar[str]
    adds: ClassVar[str] = "``long_attention``"
    """The fields that the class adds to its base, for the docstrings of Long configs."""
    default_mechanism: ClassVar[str | None] = None
    """The family's default mechanism, if Longformer's defaults do not suit it."""
    default_extension: ClassVar[str] = "tile"
    """The default way to extend the family's position tables."""
    score_cap: ClassVar[str | None] = None
    """The base's field with a cap on attention scores; ``None`` without one (Gemma 2 has one)."""
    always_causal: ClassVar[bool] = False
    """Whether every layer is causal, even if ``is_decoder`` is False (GPT-NeoX)."""
    input_spec: ClassVar[InputSpec | None] = None
    """The spec that checks whether mechanisms can read the inputs. ``None`` for texts, for which there is no check."""
    writes_head_dim: ClassVar[bool] = False
    """Whether the config computes ``head_dim`` if the base leaves it ``None``. Scaled rotary positions need the number
    (Mixtral)."""
    served_by: ClassVar[str | None] = None
    """The attention implementation of the serving engine that runs this process, or ``None``. It is the default for
    configs that the process reads."""

    if TYPE_CHECKING:
        long_attention: LongAttentionConfig
        position_extension: str
        question_separator_id: int | None
        global_token_ids: list[int] | None
        auto_map: dict[str, Any]
    else:
        question_separator_id = None
        global_token_ids = None

    def __init_subclass__(cls, view: bool = False, **kwargs: Any) -> None:
        """Adapt a class that combines this mixin with a base's config class.

        view: whether the class only shows other layer types (:func:`_seen_by_caches`).
        """
        super().__init_subclass__(**kwargs)
        base: Any = cls.__bases__[-1]
        if view or not hasattr(base, "model_type"):
            return  # not yet combined with a base
        if not issubclass(base, LongConfig):
            cls.base_model_type = base.model_type
        # The base's ``forward`` looks up masks by its layer types, so these replace the property of this mixin. They
        # are a field, or computed from other fields (Jamba).
        base_types = getattr(base, "layer_types", None)
        if "layer_types" in cls.__dataclass_fields__:
            setattr(cls, "layer_types", None)  # noqa: B010
        elif isinstance(base_types, property):
            setattr(cls, "layer_types", base_types)  # noqa: B010
        cls.keys_to_ignore_at_inference = [*getattr(base, "keys_to_ignore_at_inference", []), "memory"]
        # as transformers does for every config; without it, the base's validators would run in place of those below
        strict(cls)

    def __post_init__(self, **kwargs: Any) -> None:
        """Read the fields that this mixin adds, and the base's.

        Raises:
            OptionError: ``base_windows`` or the mechanisms are not possible.
        """
        # a file in which the base's window fields describe the mechanisms: restore the base's values
        base_windows = kwargs.pop(BASE_WINDOWS, None)
        if base_windows is not None:
            if not isinstance(base_windows, Mapping) or not base_windows.keys() <= set(SERVING_WINDOW_FIELDS):
                raise OptionError(
                    f"{BASE_WINDOWS} is {base_windows!r}, but must be a mapping with some of "
                    f"{', '.join(SERVING_WINDOW_FIELDS)}."
                )
            kwargs = {name: value for name, value in kwargs.items() if name not in SERVING_WINDOW_FIELDS}
            for name, value in base_windows.items():
                if name in self.__dataclass_fields__:
                    setattr(self, name, value)
                else:
                    kwargs[name] = value
        check_config(kwargs)
        kwargs.pop(FORMAT_FIELD, None)  # from the file of an outer config, or written by `to_dict`
        if self.writes_head_dim and getattr(self, "head_dim", 0) is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        chosen: Any = kwargs.pop("long_attention", None)
        self.position_extension = kwargs.pop("position_extension", self.default_extension)
        for name in ("question_separator_id", "global_token_ids"):
            value = kwargs.pop(name, None)
            if value is not None:
                setattr(self, name, value)
        # Remote code in a Hub repository ("repository--file") stays; a file beside the checkpoint is not saved again.
        # The field is set even if it is empty, since TRL reads it.
        code = kwargs.pop("auto_map", None) or {}
        self.auto_map = {auto: where for auto, where in code.items() if "--" in where}
        super().__post_init__(**kwargs)
        self.long_attention = chosen  # after the base's fields, by which __setattr__ checks it
        if self.served_by is not None and self.__dict__[IMPLEMENTATION_FIELD] is None:
            setattr(self, IMPLEMENTATION_FIELD, self.served_by)

    def __setattr__(self, name: str, value: Any) -> None:
        """Check and complete ``long_attention`` and the attention implementation when they are set."""
        # In a graph, a new cache copies the config and renames fields of the copy. Their values were checked before.
        if name == "long_attention" and not torch.compiler.is_compiling():
            if BASE_WINDOWS in self.__dict__:
                self._show_windows({})
            value = with_own_windows(self.default_attention() if value is None else value, own_windows(self))
            super().__setattr__(name, value)
            value.check_forms(*self.attending)
            if self.input_spec is not None:
                for mechanism in value.prototypes(range(self.num_hidden_layers)):
                    self.input_spec.check_mechanism(mechanism)
            if not self._runs_mechanisms:  # check whether the implementation that runs computes the new mechanisms
                setattr(self, IMPLEMENTATION_FIELD, self.__dict__[IMPLEMENTATION_FIELD])
        elif name == IMPLEMENTATION_FIELD:
            value = value if value is None else self.resolve_implementation(value)
            if value == VLLM or BASE_WINDOWS in self.__dict__:
                self._show_windows(vllm_windows(self) if value == VLLM else {})
            super().__setattr__(name, value)
        else:
            super().__setattr__(name, value)

    def to_dict(self) -> dict[str, Any]:
        """The values of ``config.json``. The base's window fields describe the mechanisms, and ``base_windows`` has
        the base's own values if they differ."""
        values = with_base_windows(super().to_dict())
        values.pop(BASE_ATTENTION, None)
        if not self.auto_map:
            values.pop("auto_map", None)
        if torch.compiler.is_compiling():  # a new cache in a graph needs only the names of the base's fields
            return values
        base_windows = {name: values[name] for name in SERVING_WINDOW_FIELDS if name in values}
        width = self.__dataclass_fields__.get("sliding_window")
        nullable = width is None or "None" in str(width.type)  # by the annotation of the base's field
        served = serving_window_fields(self.long_attention, *self.attending, base_windows, nullable=nullable)
        values |= {**served, FORMAT_FIELD: FORMAT, "long_attention": self.long_attention.to_dict()}
        if {**base_windows, **served} != base_windows:
            values[BASE_WINDOWS] = base_windows
        return values

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Make ``save_pretrained`` save the Python file of this class with a model. Does nothing for classes of this
        package, since loading imports the package."""
        if not cls.__module__.startswith("hf_longattn."):
            super().register_for_auto_class(auto_class)

    def resolve_implementation(self, requested: str | None) -> str:
        """The attention implementation to run if the user requests ``requested``.

        Only ``longattn`` knows mechanisms. If the mechanisms compute the same as the base's attention, any
        implementation runs. For plain windows and full attention, FlashAttention and vLLM's attention run, too,
        because they get each layer's window. In all other cases, ``longattn`` runs in place of ``sdpa`` and ``eager``,
        transformers' defaults. Other implementations are refused, because they would compute a different attention.
        ``model.use_base_attention()`` selects them explicitly.

        Raises:
            BackendError: the implementation is refused.
        """
        if requested in (None, BACKEND):
            self.__dict__.pop(BASE_ATTENTION, None)
            return BACKEND
        if requested == VLLM:
            vllm_windows(self)
            return VLLM
        if "long_attention" not in self.__dict__ or self.base_attention_chosen or self._computes_as_base:
            return str(requested)  # checked again when long_attention is set
        if requested not in DEFAULTS and flash_takes_windows(self, str(requested)):
            return str(requested)
        if requested in DEFAULTS:
            logger.warning_once(
                f"attn_implementation={requested!r} would leave out the mechanism {self.long_attention.mechanism!r}, "
                f"so {BACKEND!r} runs; model.use_base_attention() computes the attention of the plain base."
            )
            return BACKEND
        raise BackendError(
            f"attn_implementation={requested!r} does not compute the mechanism {self.long_attention.mechanism!r} of "
            f"this {type(self).__name__}; leave it out, or call model.use_base_attention({requested!r}) for the "
            "attention of the plain base."
        )

    def _show_windows(self, fields: Mapping[str, Any]) -> None:
        """Replace the base's values of :data:`SERVING_WINDOW_FIELDS` by ``fields``. With ``{}``, restore the base's
        values."""
        values = self.__dict__
        base = values.pop(BASE_WINDOWS, None)
        if base is not None:
            for name in SERVING_WINDOW_FIELDS:
                values.pop(name, None)
            values.update(base)
        if fields:
            values[BASE_WINDOWS] = {name: values[name] for name in SERVING_WINDOW_FIELDS if name in values}
            values.update(fields)

    @property
    def _computes_as_base(self) -> bool:
        """Whether the mechanisms compute the same as the base's attention."""
        layers, causal = self.attending
        return equals_base(self.long_attention, own_windows(self)[:layers], causal)

    @property
    def base_attention_chosen(self) -> bool:
        """Whether ``model.use_base_attention()`` was called, so that mechanisms do not run."""
        return bool(self.__dict__.get(BASE_ATTENTION))

    def default_attention(self) -> LongAttentionConfig | None:
        """The family's attention for a user who chooses none. ``None`` if the family has no default; the base's window
        or Longformer's defaults are used then."""
        return None if self.default_mechanism is None else LongAttentionConfig(self.default_mechanism)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the values of a config file. The file of a base is read as one of a Long config, also if the base's
        config is a part of it (CLIP's text tower)."""
        values, kwargs = super().get_config_dict(*args, **kwargs)
        check_config(values)
        part = values.get(cls.base_config_key) if cls.base_config_key else None
        types = (cls.base_model_type, cls.model_type)
        if isinstance(part, dict) and part.get("model_type", cls.base_model_type) in types:
            values = {"model_type": cls.base_model_type, **part}
        # a base: note its lengths, which a longer config changes
        if values.get("model_type") == cls.base_model_type:
            base_class: Any = cls.__bases__[-1]
            base = base_class.from_dict(dict(values))
            before = {name: getattr(base, name, None) for name in LENGTH_FIELDS}
            values["extended_from"] = {name: value for name, value in before.items() if value is not None}
            values["model_type"] = cls.model_type
        return values, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config with the values of ``config_dict``, changed by keyword arguments as in the base's ``from_dict``.

        A ``long_attention`` among the keyword arguments replaces that of the dictionary, which is not checked then.
        If the dictionary has a base's values, rotary positions are scaled to the new length, unless keyword arguments
        set them.

        Raises:
            CheckpointError: the values are refused by :func:`hf_longattn.files.check_config`.
        """
        check_config(config_dict)
        chosen = kwargs.pop("long_attention", None)
        values = config_dict if chosen is None else {**config_dict, "long_attention": chosen}
        result = super().from_dict(values, **kwargs)
        is_base = "long_attention" not in config_dict
        if is_base and kwargs.keys().isdisjoint(ROPE_FIELDS):
            config = result[0] if isinstance(result, tuple) else result
            before = config_dict.get("extended_from", {})
            config._scale_rotary(before)
            rope = getattr(config, "rope_parameters", None)
            # extended_from has only values that have changed
            if "rope_parameters" in before and before["rope_parameters"] == rope:
                config.extended_from = {name: value for name, value in before.items() if name != "rope_parameters"}
        return result

    def _scale_rotary(self, before: Mapping[str, Any]) -> None:
        """Scale the base's rotary positions as a conversion to this length does.

        Args:
            before: the base's values of :data:`LENGTH_FIELDS`.
        """
        old = before.get("max_position_embeddings")
        new = getattr(self, "max_position_embeddings", None)
        scales = "rope_parameters" in before and FAMILIES[self.base_model_type].scales_rotations(self)
        if not scales or old is None or new is None or new <= old:
            return
        try:
            plan = plan_rotary(self, self.long_attention, "auto", old, new, causal=self._causal)
            # an exact plan does not change the outputs for short texts, and needs no message
            outcome = "" if plan.exact else f"are scaled by {plan.scaling}, as in a conversion"
        except OptionError:
            plan = plan_rotary(self, self.long_attention, "rope:none", old, new, causal=self._causal)
            outcome = "stay scaled as in the base"
        plan.write(self)
        if outcome:
            logger.warning_once(
                f"Rotary positions {outcome}, for {new} tokens instead of {old}; pass rope_parameters to choose "
                "others."
            )

    @property
    def layer_types(self) -> list[str]:
        """The type of every cache layer, by which ``DynamicCache(config)`` and ``StaticCache(config)`` build layers.

        If every cache layer holds all keys, the attribute is missing: it raises ``AttributeError``. If the base has
        layer types itself, this property returns the base's, because its ``forward`` looks up masks by them. Caches
        then get their layer types from :meth:`get_text_config`.
        """
        types = self.__dict__.get("layer_types")
        if types is None and not hasattr(self, "sliding_window"):
            types = self._decode_layer_types()
        if types is None:
            raise AttributeError("layer_types")
        return types

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The base's text config. For ``decoder=True``, it has the layer types of caches, which are built from it."""
        config = super().get_text_config(decoder=decoder, encoder=encoder)
        is_for_caches = decoder and not encoder and self._causal and hasattr(self, "sliding_window")
        if not is_for_caches or BASE_WINDOWS in self.__dict__:
            return config
        if not self._runs_mechanisms and (self.base_attention_chosen or self._computes_as_base):
            return config  # the base's attention gets the base's caches
        types = self._decode_layer_types() or [FULL] * self.num_hidden_layers
        if getattr(config, "layer_types", None) == types:
            return config
        config_class: Any = type(config)
        # The view has other layer types, but shares all fields, because libraries set fields on the returned config
        # (torchao unties embeddings).
        view = object.__new__(_seen_by_caches(config_class))
        view.__dict__ = config.__dict__
        return view

    def _decode_layer_types(self) -> list[str] | None:
        """The type of every cache layer for the mechanisms; ``None`` if every cache layer holds all keys.

        All keys are held in an encoder, with another attention implementation, and if no mechanism is bounded. They
        are also held in a decoder with cross-attention, because the cache of the encoder's keys is built from the same
        config."""
        from ...memory.decode_cache import decode_layer_types

        crossing = getattr(self, "add_cross_attention", False) or self.is_encoder_decoder
        if not self._runs_mechanisms or not self._causal or crossing:
            return None
        capped = self.score_cap is not None and getattr(self, self.score_cap) is not None
        return decode_layer_types(*self._decoding, plain_scores=not capped)

    @property
    def _causal(self) -> bool:
        """Whether later tokens are hidden in every layer."""
        if self.always_causal:
            return True
        return getattr(self, "is_decoder", True) and not getattr(self, "use_bidirectional_attention", None)

    @property
    def attending(self) -> tuple[int, bool]:
        """Number of layers that run ``long_attention``, and whether they are causal."""
        return self.num_hidden_layers, self._causal

    @property
    def _decoding(self) -> tuple[LongAttentionConfig, int]:
        """The attention and the number of layers of the stack that decodes."""
        return self.long_attention, self.num_hidden_layers

    def validate_layer_type(self) -> None:
        """No check, because transformers knows only its own cache layer types. Ours follow from ``long_attention``."""

    @property
    def output_attentions(self) -> bool | None:
        """Whether attentions are returned by default. The ``longattn`` backend returns them as ``eager`` does."""
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: bool | None) -> None:
        self._output_attentions = value
        self.validate_output_attentions()

    def validate_output_attentions(self) -> None:
        if not self._runs_mechanisms:
            super().validate_output_attentions()

    @property
    def _runs_mechanisms(self) -> bool:
        """Whether the attention implementation is ``longattn``, or not chosen yet."""
        return self.__dict__.get(IMPLEMENTATION_FIELD) in (None, BACKEND)


@cache
def _seen_by_caches(config_class: type[LongConfig]) -> type[LongConfig]:
    """A subclass of ``config_class`` that shows the layer types of caches as ``layer_types``."""

    attributes = {
        "layer_types": property(lambda self: self._decode_layer_types() or [FULL] * self.num_hidden_layers),
        "__module__": config_class.__module__,
        "__qualname__": config_class.__qualname__,
    }
    return type(config_class.__name__, (config_class,), attributes, view=True)


class LongEncoderConfig(LongConfig):
    """:class:`LongConfig` for a base that is always an encoder and whose config has no ``is_decoder``."""

    is_decoder = False


class LongEncoderDecoderConfig(LongConfig):
    """Mixin before the base's config class: ``class LongBartConfig(LongEncoderDecoderConfig, BartConfig)``.

    long_attention: attention of the encoder, or of the decoder in a model without an encoder
        (``LongBartForCausalLM``).
    decoder_long_attention: self-attention of the decoder beside an encoder; ``None`` for full attention.
        Cross-attention is full.
    max_position_embeddings: maximum number of tokens of the encoder.
    max_decoder_position_embeddings: maximum number of tokens of the decoder; ``None`` for the encoder's. A config read
        from a folder of the base keeps the base's number, since a summary does not grow with its document.
    """

    adds = "``long_attention``, ``decoder_long_attention`` and ``max_decoder_position_embeddings``"

    if TYPE_CHECKING:
        decoder_long_attention: LongAttentionConfig | None
        max_decoder_position_embeddings: int
    else:
        decoder_long_attention = None  # `get_text_config(decoder=True)` removes this field of a copy

    def __post_init__(self, **kwargs: Any) -> None:
        self.decoder_long_attention = kwargs.pop("decoder_long_attention", None)
        decoder_length = kwargs.pop("max_decoder_position_embeddings", None)
        super().__post_init__(**kwargs)
        self.max_decoder_position_embeddings = (
            self.max_position_embeddings if decoder_length is None else decoder_length
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "decoder_long_attention" and value is not None:
            value = LongAttentionConfig.from_dict(value)
            value.check_forms(self.decoder_layers, True)
        super().__setattr__(name, value)
        if name == "decoder_long_attention" and not self._runs_mechanisms:
            setattr(self, IMPLEMENTATION_FIELD, self.__dict__[IMPLEMENTATION_FIELD])

    @property
    def _computes_as_base(self) -> bool:
        decodes = equals_base(self.decoder_attention, [None] * self.decoder_layers, True)
        return decodes and (not self.is_encoder_decoder or super()._computes_as_base)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        if self.decoder_long_attention is not None:
            values["decoder_long_attention"] = self.decoder_long_attention.to_dict()
        return values

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        values, kwargs = super().get_config_dict(*args, **kwargs)
        if "long_attention" not in values:
            values.setdefault("max_decoder_position_embeddings", cls.length_in(values))
        return values, kwargs

    @classmethod
    def length_in(cls, values: Mapping[str, Any]) -> int:
        """The base's maximum number of tokens with these config values."""
        default = cls.__dataclass_fields__["max_position_embeddings"].default
        return int(values.get("max_position_embeddings", default))

    @property
    def decoder_attention(self) -> LongAttentionConfig:
        """The mechanisms of the decoder's self-attention."""
        if self.decoder_long_attention is not None:
            return self.decoder_long_attention
        return LongAttentionConfig("full") if self.is_encoder_decoder else self.long_attention

    @property
    def attending(self) -> tuple[int, bool]:
        return (self.encoder_layers, False) if self.is_encoder_decoder else (self.decoder_layers, True)

    @property
    def _decoding(self) -> tuple[LongAttentionConfig, int]:
        return self.decoder_attention, self.decoder_layers


def attention_implementation(config: Any) -> str | None:
    """A config's attention implementation; ``None`` without a config."""
    if config is None:
        return None
    try:
        return config._attn_implementation
    except AttributeError:
        raise missing("attention_implementation") from None


def runs_mechanisms(module: Any) -> bool:
    """Whether a model or attention module runs mechanisms, and not an attention implementation of transformers."""
    return attention_implementation(getattr(module, "config", None)) == BACKEND


def keeps_own_attention(module: Any) -> bool:
    """Whether an attention module runs an attention implementation of transformers, by its own config."""
    return attention_implementation(getattr(module, "config", None)) not in (None, BACKEND)
