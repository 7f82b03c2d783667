"""Sliding windows of the base, and the layers that keep them.

Mistral and Phi-3 may have a sliding window in every layer. Qwen, Gemma 2 and 3, SmolLM3 and ModernBERT have them in
the layers that ``layer_types`` lists. If only some layers have a window, they keep it unless ``long_attention`` names
these layers or a list of mechanisms to use in turn; the model's mechanism then replaces only full attention. If all
layers have a window, a chosen mechanism replaces it. Without a choice they keep it.

On disk, the base's fields for windows describe the mechanisms, because serving engines read them
(:func:`serving_window_fields`).

transformers' FlashAttention computes plain windows if it receives each layer's width, and vLLM if its process finds
them in the config (:func:`vllm_windows`). Both read ``sliding_window`` as ``sliding_window - 1`` keys on either side,
and a causal call hides later keys (``modeling_flash_attention_utils.py``; vLLM's
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
"""Field with the base's original values of :data:`SERVING_WINDOW_FIELDS`, if these describe the mechanisms: in files,
and under vLLM."""
VLLM = "vllm"
"""The attention implementation that vLLM's Transformers backend registers and sets."""
TYPES_ARE_MASKS = ("cwm", "gemma2", "ministral", "qwen2", "qwen3", "smollm3", "vaultgemma")
"""Bases that use ``layer_types`` for masks alone. Others also rotate by them, or rotate in some layers only (Gemma 3,
Cohere 2)."""
NOT_IN_VLLM = ("diffllama", "gpt2", "granite_swa", "hrm_text", "mobilebert")
"""Bases that need another shape of attention's output, have sinks, or mix neighbouring tokens of a row themselves."""
UNTRIED_IN_VLLM = {
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "latent attention": ("kv_lora_rank",),
    "pruned heads": ("kept_heads",),
}
"""Features that vLLM's Transformers backend treats in ways that were not compared with Long models -> config fields
that are then set."""


def own_windows(config: Any) -> list[int | None]:
    """The width of every layer's window in the units of mechanism ``window``. ``None`` for full attention.

    Layers are causal, except ModernBERT's.

    Raises:
        CheckpointError: the config's width is not a number of tokens.
    """
    if getattr(config, "is_heterogeneous", False):  # each layer has a config in transformers' per_layer_config
        return [own_windows(of_layer)[layer] for layer, of_layer in enumerate(config.per_layer_config)]
    width, layers = getattr(config, "sliding_window", None), config.num_hidden_layers
    if width is None or getattr(config, "use_sliding_window", None) is False:  # Qwen2-MoE's width is then 0
        return [None] * layers
    if width < 1:
        raise CheckpointError(
            f"The config's sliding_window is {width}, but a window has at least 1 token; write a width, or null for "
            "full attention."
        )
    causal = not hasattr(config, "local_attention") or config.model_type.endswith("decoder")
    if getattr(config, "use_bidirectional_attention", None):
        width = 2 * (width - 1)  # Gemma 3 gives the first distance that is not visible
    elif not causal:
        width = 2 * width  # transformers gives the number of tokens on either side
    types = config.__dict__.get("layer_types")
    return [width if types is None or layer_type == SLIDING else None for layer_type in types or [SLIDING] * layers]


def base_attention(windows: list[int | None]) -> LongAttentionConfig:
    """The base's attention: full, with a window in layers that have one. Each of these (:func:`own_windows`) is listed
    by number."""
    layers = {
        layer: {"mechanism": "window", "window": width} for layer, width in enumerate(windows) if width is not None
    }
    return LongAttentionConfig("full", layers=layers)


def with_own_windows(
    chosen: Mapping[str, Any] | LongAttentionConfig | None, windows: list[int | None]
) -> LongAttentionConfig:
    """``chosen`` (``None``: the default) for a base whose layers have ``windows`` (:func:`own_windows`).

    If only some layers have one, they keep it, unless ``chosen`` names the layer or lists mechanisms in turn. If all
    have one, ``chosen`` replaces it; the default is then the base's window, if all are equal.
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
    """Whether a layer attends to the same keys as in the base, at any length."""
    return width is not None and attention.for_layer(layer) == ("window", {"window": width})


def equals_base(attention: LongAttentionConfig, windows: list[int | None], causal: bool) -> bool:
    """Whether every layer computes the same as in the base, at any length."""
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

    If that is impossible, a causal model's ``base_fields`` describe full attention, and an encoder gets no fields.

    Args:
        nullable: whether the base's ``sliding_window`` may be null. If not, only ``layer_types`` says that no layer
            has a window.
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
    return {
        "sliding_window": different.pop(),
        "layer_types": [FULL if width is None else SLIDING for width in widths],
        "use_sliding_window": True,
        "max_window_layers": layers if None in widths[widths.count(None) :] else widths.count(None),
    }


def with_base_windows(values: dict[str, Any]) -> dict[str, Any]:
    """File values of a Long config, with the window fields restored to the base's original values."""
    values = dict(values)
    base_fields = values.pop(BASE_WINDOWS, None)
    if not isinstance(base_fields, Mapping):
        return values
    return {**{name: value for name, value in values.items() if name not in SERVING_WINDOW_FIELDS}, **base_fields}


def band_around(mechanism: Mechanism) -> int | None:
    """Window width of an encoder layer as in transformers' Longformer, with or without global tokens. ``None`` if the
    layer has no window of equal width on both sides."""
    if isinstance(mechanism, Longformer):
        pattern = mechanism.pattern(False)
        band = None if mechanism.relative is not None else (pattern.left, pattern.right)
    else:
        band = band_of(mechanism, False)
    return None if band is None or band[0] == UNBOUNDED or band[0] != band[1] else 2 * band[0]


def window_size(mechanism: Mechanism, causal: bool) -> int | None:
    """``sliding_window`` of a mechanism as FlashAttention and vLLM count it; ``None`` for full attention.

    Raises:
        BackendError: the mechanism is more than full attention or a window. The message says what it is, and how to
            convert without it.
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
    """:func:`window_size` of each layer of a text model in which a call of attention is nothing but its layer's
    mechanism.

    This is what a model declares to FlashAttention and to vLLM, which ignore score terms.

    Raises:
        BackendError: a layer has more than a window, or the model more than such calls.
    """
    family = known_family(config)
    if (
        family is None
        or family.spec.units  # images or sounds
        or family.two_stacks
        or family.mixin is not None
        or config.is_encoder_decoder
    ):
        raise BackendError(
            f"the attention of {type(config).__name__}; use {BACKEND!r}, which transformers' own servers run."
        )
    layers, causal = config.attending
    return [window_size(mechanism, causal) for mechanism in config.long_attention.prototypes(range(layers))]


def vllm_windows(config: Any) -> dict[str, Any]:
    """Values of ``layer_types`` and ``sliding_window`` from which vLLM computes the mechanisms of a Long config.

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
    """Why vLLM would not compute windows of ``sizes``, one for each layer, and what to do. "" if it would."""
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
    """Whether transformers' FlashAttention (``requested``) can compute the mechanisms. If so, registers it with each
    layer's window."""
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
        mechanism: Any = getattr(module, "long_attention", None)
        if isinstance(mechanism, Mechanism) and not getattr(module.config, "base_attention_chosen", True):
            causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
            kwargs["sliding_window"] = window_size(mechanism, causal)
        return attend(module, query, *args, is_causal=is_causal, **kwargs)

    attend_in_window.takes_windows = True  # type: ignore[attr-defined]
    AttentionInterface.register(requested, attend_in_window)
    return True
