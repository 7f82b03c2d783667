"""Sliding windows of the base, and the layers that keep them.

Mistral and Phi-3 may have a sliding window in every layer. Qwen, Gemma 2 and 3, SmolLM3 and ModernBERT have windows in
the layers that ``layer_types`` lists.

- If only some layers have a window, the model's mechanism replaces only full attention. A layer with a window keeps
  it, unless ``long_attention`` names this layer, or lists mechanisms to use in turn.
- If all layers have a window, the model's mechanism replaces it. Without a mechanism, they keep it.

On disk, the base's fields for windows describe the mechanisms, because serving engines read these fields
(:func:`serving_window_fields`).

transformers' FlashAttention and vLLM compute plain windows. FlashAttention receives each layer's width with the call,
and vLLM reads it from the config (:func:`vllm_windows`). Both take ``sliding_window`` for ``sliding_window - 1`` keys
on either side of the query, and a causal call hides later keys (``modeling_flash_attention_utils.py``; vLLM's
``v1/attention/backends/flash_attn.py``). Therefore w means a causal window of w keys, and w/2 + 1 means a window of
w/2 keys on each side.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers.utils.generic import is_flash_attention_requested

from ...configuration import LongAttentionConfig
from ...engines.call import UNBOUNDED
from ...errors import BackendError, CheckpointError
from ...mechanisms.common.base import Mechanism
from ...mechanisms.common.capabilities import band_of
from ...mechanisms.common.registry import prototype
from ...mechanisms.longformer import Longformer
from ...names import BACKEND
from .definition import known_family

SLIDING, FULL = "sliding_attention", "full_attention"
"""transformers' names for a layer with and without a window, in ``config.layer_types``."""
SERVING_WINDOW_FIELDS = (
    "sliding_window",
    "layer_types",
    "use_sliding_window",
    "max_window_layers",
    "attention_window",
)
"""Config fields from which serving engines choose each layer's attention."""
BASE_WINDOWS = "base_windows"
"""Field with the base's original values of :data:`SERVING_WINDOW_FIELDS`, while these describe the mechanisms: in
files, and in the memory of a vLLM process."""
VLLM = "vllm"
"""The attention implementation that vLLM's Transformers backend registers and sets."""
TYPES_ARE_MASKS = ("cwm", "gemma2", "ministral", "qwen2", "qwen3", "smollm3", "vaultgemma")
"""Bases that use ``layer_types`` for masks alone. Other bases also choose rotary positions by them, or rotate in some
layers only (Gemma 3, Cohere 2)."""
NOT_IN_VLLM = ("diffllama", "gpt2", "granite_swa", "hrm_text", "mobilebert")
"""Bases that vLLM's Transformers backend cannot run. They need another shape of attention's output, have sinks, or mix
neighbouring tokens of a row outside attention."""
UNTRIED_IN_VLLM = {
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "latent attention": ("kv_lora_rank",),
    "pruned heads": ("kept_heads",),
}
"""Features with which vLLM was not compared with Long models -> config fields that are set in a model with the
feature."""


def own_windows(config: Any) -> list[int | None]:
    """The base's window in every layer, as the option ``window`` of mechanism ``window``; ``None`` for full attention.

    Raises:
        CheckpointError: the config's width is not a number of tokens.
    """
    if getattr(config, "is_heterogeneous", False):  # each layer has its own config
        return [own_windows(layer_config)[layer] for layer, layer_config in enumerate(config.per_layer_config)]
    width, layers = getattr(config, "sliding_window", None), config.num_hidden_layers
    if width is None or getattr(config, "use_sliding_window", None) is False:  # Qwen2-MoE's width may be 0 then
        return [None] * layers
    if width < 1:
        raise CheckpointError(
            f"The config's sliding_window is {width}, but a window has at least 1 token; write a width, or null for "
            "full attention."
        )
    # convert transformers' width of a bidirectional window to the total width
    causal = not hasattr(config, "local_attention") or config.model_type.endswith("decoder")  # ModernBERT's field
    if getattr(config, "use_bidirectional_attention", None):
        width = 2 * (width - 1)  # in Gemma 3, it is the first distance that is not visible
    elif not causal:
        width = 2 * width  # in ModernBERT, it is the number of tokens on either side
    types = config.__dict__.get("layer_types")
    return [width if types is None or layer_type == SLIDING else None for layer_type in types or [SLIDING] * layers]


def base_attention(windows: list[int | None]) -> LongAttentionConfig:
    """The base's attention as a config: full attention, and a window in each layer that has one.

    windows: from :func:`own_windows`.
    """
    layers = {
        layer: {"mechanism": "window", "window": width} for layer, width in enumerate(windows) if width is not None
    }
    return LongAttentionConfig("full", layers=layers)


def with_own_windows(
    chosen: Mapping[str, Any] | LongAttentionConfig | None, windows: list[int | None]
) -> LongAttentionConfig:
    """The attention of a model: that of ``chosen``, with the base's windows in the layers that keep them.

    Args:
        chosen: the user's choice. ``None`` is the base's window if all layers have the same, else Longformer's
            defaults.
        windows: the base's window in each layer (:func:`own_windows`). If only some layers have one, they keep it,
            unless ``chosen`` names the layer or lists mechanisms to use in turn.
    """
    attention = LongAttentionConfig.from_dict(chosen)
    widths = [width for width in windows if width is not None]
    if chosen is None and widths and len(set(windows)) == 1:
        return LongAttentionConfig("window", window=widths[0])
    in_some_layers = 0 < len(widths) < len(windows)
    if not in_some_layers or attention.turns:
        return attention
    return LongAttentionConfig(
        attention.mechanism, {**base_attention(windows).layers, **attention.layers}, **attention.options
    )


def keeps_window(attention: LongAttentionConfig, layer: int, width: int | None) -> bool:
    """Whether a layer has the base's window of this ``width``. False if the base has full attention there."""
    return width is not None and attention.for_layer(layer) == ("window", {"window": width})


def equals_base(attention: LongAttentionConfig, windows: list[int | None], causal: bool) -> bool:
    """Whether every layer computes the same as in the base, at any length.

    windows: the base's window in each layer; ``None`` for full attention.
    """
    for layer, width in enumerate(windows):
        if width is not None:
            same = keeps_window(attention, layer, width)
        else:
            mechanism = prototype(*attention.for_layer(layer))
            same = mechanism.relative is None and mechanism.covers(UNBOUNDED, causal)
        if not same:
            return False
    return True


def serving_window_fields(
    attention: LongAttentionConfig, layers: int, causal: bool, base_fields: Collection[str], *, nullable: bool
) -> dict[str, Any]:
    """Values of :data:`SERVING_WINDOW_FIELDS` that describe ``attention`` to serving engines.

    If these fields cannot describe it, a causal model gets those of full attention, and an encoder gets none.

    Args:
        layers: number of layers.
        causal: whether they are causal.
        base_fields: names of the fields that the base's config has. Only these describe full attention.
        nullable: whether the base's ``sliding_window`` may be null. If not, ``layer_types`` says that no layer has a
            window.
    """
    mechanisms = attention.prototypes(range(layers))
    if not causal:
        widths_around = [band_around(mechanism) for mechanism in mechanisms]
        return {"attention_window": widths_around} if all(widths_around) else {}
    bands = [band_of(mechanism, True) for mechanism in mechanisms]
    # width per layer, None for full attention. Empty if some layer has another kind of attention
    widths = []
    if None not in bands:
        widths = [None if band[0] == UNBOUNDED else band[0] + 1 for band in bands if band is not None]
    different = {*widths} - {None}
    if len(different) != 1:
        no_windows = {"sliding_window": None, "layer_types": None} if nullable else {"layer_types": [FULL] * layers}
        neutral = {**no_windows, "use_sliding_window": False, "max_window_layers": layers}
        return {name: value for name, value in neutral.items() if name in base_fields}
    # ``max_window_layers`` is the number of layers without a window at the start, if all other layers have one
    full_layers = widths.count(None)
    first_are_full = None not in widths[full_layers:]
    return {
        "sliding_window": different.pop(),
        "layer_types": [FULL if width is None else SLIDING for width in widths],
        "use_sliding_window": True,
        "max_window_layers": full_layers if first_are_full else layers,
    }


def with_base_windows(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a Long config's file, with the base's original values of the window fields."""
    values = dict(values)
    base_fields = values.pop(BASE_WINDOWS, None)
    if not isinstance(base_fields, Mapping):
        return values
    others = {name: value for name, value in values.items() if name not in SERVING_WINDOW_FIELDS}
    return {**others, **base_fields}


def band_around(mechanism: Mechanism) -> int | None:
    """``attention_window`` of an encoder layer, as transformers' Longformer counts it: the keys on both sides.
    ``None`` if the layer has no window, or not as many keys on either side. Global tokens may be added to the
    window."""
    if isinstance(mechanism, Longformer):
        pattern = mechanism.pattern(False)
        band = None if mechanism.relative is not None else (pattern.left, pattern.right)
    else:
        band = band_of(mechanism, False)
    if band is None or band[0] == UNBOUNDED or band[0] != band[1]:
        return None
    return 2 * band[0]


def window_size(mechanism: Mechanism, causal: bool) -> int | None:
    """``sliding_window`` of a mechanism as FlashAttention and vLLM count it; ``None`` for full attention.

    Raises:
        BackendError: the mechanism is not only a window or full attention. The message continues a sentence. It says
            what cannot be expressed, and how to convert without it.
    """
    options, band = mechanism.options, band_of(mechanism, causal)
    if band is None or not (causal or band[0] == band[1]):
        changed = f" with {', '.join(options.changed())}" if options.changed() else ""
        flags = "" if causal else " --option exact_length=0"
        raise BackendError(
            f"mechanism {mechanism.name!r}{changed}; convert with --mechanism window{flags}, or with "
            "a mechanism that has a stock checkpoint (longattn export MODEL DIR --format native)."
        )
    short = 0 if causal else options.exact_length
    if short and not mechanism.covers(short):
        raise BackendError(
            f"full attention for texts of up to {short} tokens beside windows; convert with --option exact_length=0."
        )
    return None if band[0] == UNBOUNDED else band[0] + 1


def window_sizes(config: Any) -> list[int | None]:
    """:func:`window_size` of each layer, for FlashAttention and vLLM. These ignore score terms, so only plain text
    models are accepted.

    Raises:
        BackendError: a layer has more than a window, or the model's attention may be more than its mechanisms. The
            message continues a sentence.
    """
    family = known_family(config)
    if (
        family is None
        or family.spec.units  # images or sounds
        or family.two_stacks
        or family.mixin is not None  # the base changes scores, for example
        or config.is_encoder_decoder
    ):
        raise BackendError(
            f"the attention of {type(config).__name__}; use {BACKEND!r}, which transformers' own servers run."
        )
    layers, causal = config.attending
    return [window_size(mechanism, causal) for mechanism in config.long_attention.prototypes(range(layers))]


def vllm_windows(config: Any) -> dict[str, Any]:
    """Values of ``layer_types`` and ``sliding_window`` from which vLLM computes the mechanisms of a Long config. Empty
    if no mechanisms are set yet, or if the base's attention runs.

    Raises:
        BackendError: vLLM would compute another attention, or other positions. The message says why, and what to type.
    """
    if "long_attention" not in vars(config) or config.base_attention_chosen:
        return {}
    try:
        sizes = window_sizes(config)
        problem = _vllm_problem(config, sizes)
    except BackendError as error:
        problem = str(error)
    if problem:
        raise BackendError(f"attn_implementation={VLLM!r} cannot express {problem}")
    types = [FULL if size is None else SLIDING for size in sizes]
    width = next((size for size in sizes if size is not None), None)
    return {"layer_types": types} if width is None else {"layer_types": types, "sliding_window": width}


def _vllm_problem(config: Any, sizes: Sequence[int | None]) -> str:
    """Why vLLM would not compute the same as a Long model with these windows, and what to do. Empty if it would.

    sizes: the ``sliding_window`` of each layer; ``None`` for full attention.
    """
    values = vars(config)
    family: Any = known_family(config)
    elsewhere = f"use {BACKEND!r}, which transformers' own servers run."
    for name, fields in UNTRIED_IN_VLLM.items():
        if any(values.get(field) for field in fields):
            return f"{name}, with which it was not compared; {elsewhere}"
    base_types = values.get(BASE_WINDOWS, values).get("layer_types")
    if (
        family.base_model_type in NOT_IN_VLLM
        or not family.base_class(family.base_model_name)._supports_attention_backend
        or not set(base_types or ()) <= {FULL, SLIDING}
    ):
        return f"the layers of {type(config).__name__}; {elsewhere}"
    counts_from_padding = any(table.first_id(config) for table in family.position_tables)
    if counts_from_padding and (config.attending[1] or "roberta" not in config.model_type):
        return f"positions that begin after the padding token's, except those of RoBERTa encoders; {elsewhere}"
    if len(set(sizes) - {None}) > 1:
        return "windows of different widths in one model; convert with one --option window=N for all layers."
    types = [FULL if size is None else SLIDING for size in sizes]
    if base_types not in (None, types) and family.base_model_type not in TYPES_ARE_MASKS:
        return (
            f"windows in other layers than its base's, since {type(config).__name__} chooses positions by "
            "layer_types too; convert with windows in these layers alone."
        )
    return ""


def flash_takes_windows(config: Any, requested: str) -> bool:
    """Whether a FlashAttention of transformers can compute the mechanisms of a Long config. If so, the registered
    function is replaced by one that passes on each layer's window.

    requested: the name of the attention implementation.
    """
    if not is_flash_attention_requested(requested_attention_implementation=requested) or "|" in requested:
        return False
    try:
        window_sizes(config)
    except BackendError:
        return False
    family: Any = known_family(config)
    if not family.base_class(family.base_model_name)._supports_flash_attn:
        return False
    from transformers import AttentionInterface  # imports models, which a config alone does not need

    attend: Any = AttentionInterface().get(requested)
    if attend is None or getattr(attend, "takes_windows", False):
        return True

    @functools.wraps(attend)
    def attend_in_window(
        module: nn.Module, query: Tensor, *args: Any, is_causal: bool | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The registered function, with the window of the module's mechanism if it has one."""
        mechanism: Any = getattr(module, "long_attention", None)
        if isinstance(mechanism, Mechanism) and not getattr(module.config, "base_attention_chosen", True):
            causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
            kwargs["sliding_window"] = window_size(mechanism, bool(causal))
        return attend(module, query, *args, is_causal=is_causal, **kwargs)

    attend_in_window.takes_windows = True  # type: ignore[attr-defined]
    AttentionInterface.register(requested, attend_in_window)
    return True
