"""Sliding windows of the base, and the layers that keep them.

Mistral and Phi-3 may have a sliding window in every layer. Qwen, Gemma 2 and 3, SmolLM3 and
ModernBERT have them in the layers that ``layer_types`` lists. If only some layers have a window, they keep it unless ``long_attention``
names these layers or a list of mechanisms to use in turn; the model's mechanism then replaces only full attention. If all layers have a
window, a chosen mechanism replaces it. Without a choice they keep it.

On disk, the base's fields for windows describe the mechanisms, because serving engines read them (:func:`serving_window_fields`).

transformers' FlashAttention computes plain windows if it receives each layer's width. It reads ``sliding_window`` as
``sliding_window - 1`` keys on either side, and a causal call hides later keys (``modeling_flash_attention_utils.py``). Therefore w means a
causal window of w keys, and w/2 + 1 means a window of w/2 keys on each side.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn
from transformers.utils.generic import is_flash_attention_requested

from ...configuration import LongAttentionConfig
from ...engines.call import UNBOUNDED
from ...errors import CheckpointError
from ...mechanisms.common.base import Mechanism
from ...mechanisms.common.capabilities import band_of
from ...mechanisms.common.registry import prototype
from ...mechanisms.longformer import Longformer
from .definition import known_family

SLIDING, FULL = "sliding_attention", "full_attention"
"""transformers' names for a layer with and without a window, in ``config.layer_types``."""
SERVING_WINDOW_FIELDS = ("sliding_window", "layer_types", "use_sliding_window", "max_window_layers", "attention_window")
"""Config fields from which serving engines choose each layer's attention."""
BASE_WINDOWS = "base_windows"
"""Field of a config's file with the base's original values of :data:`SERVING_WINDOW_FIELDS`, if these describe the mechanisms."""


def own_windows(config: Any, causal: bool | None = None) -> list[int | None]:
    """The width of every layer's window in the units of mechanism ``window``. ``None`` for full attention.

    Args:
        causal: whether the layers are causal. ``None`` derives it from the config: all are, except ModernBERT's.
    Raises:
        CheckpointError: the config's width is not a number of tokens.
    """
    if getattr(config, "is_heterogeneous", False):  # each layer has a config in transformers' per_layer_config
        return [own_windows(of_layer, causal)[layer] for layer, of_layer in enumerate(config.per_layer_config)]
    width, layers = getattr(config, "sliding_window", None), config.num_hidden_layers
    if width is None or getattr(config, "use_sliding_window", None) is False:  # Qwen2-MoE's width is then 0
        return [None] * layers
    if width < 1:
        raise CheckpointError(
            f"The config's sliding_window is {width}, but a window has at least 1 token; write a width, or null for full attention."
        )
    if causal is None:
        causal = not hasattr(config, "local_attention") or config.model_type.endswith("decoder")
    if getattr(config, "use_bidirectional_attention", None):
        width = 2 * (width - 1)  # Gemma 3 gives the first distance that is not visible
    elif not causal:
        width = 2 * width  # transformers gives the number of tokens on either side
    types = config.__dict__.get("layer_types")
    return [width if types is None or layer_type == SLIDING else None for layer_type in types or [SLIDING] * layers]


def base_attention(windows: list[int | None]) -> LongAttentionConfig:
    """The base's attention: full, with a window in layers that have one. Each of these (:func:`own_windows`) is listed by number."""
    return LongAttentionConfig("full", layers={layer: _window_spec(width) for layer, width in enumerate(windows) if width is not None})


def with_own_windows(chosen: Mapping[str, Any] | LongAttentionConfig | None, windows: list[int | None]) -> LongAttentionConfig:
    """``chosen`` (``None``: the default), with the base's windows (:func:`own_windows`) in the layers that keep them."""
    attention = LongAttentionConfig.from_dict(chosen)
    widths = [width for width in windows if width is not None]
    if chosen is None and widths and len(set(windows)) == 1:
        return LongAttentionConfig("window", window=widths[0])
    if not widths or attention.turns or len(widths) == len(windows):
        return attention
    window_layers = {
        layer: _window_spec(width) for layer, width in enumerate(windows) if width is not None and layer not in attention.layers
    }
    return (
        LongAttentionConfig(attention.mechanism, {**window_layers, **attention.layers}, **attention.options) if window_layers else attention
    )


def keeps_window(attention: LongAttentionConfig, layer: int, width: int | None) -> bool:
    """Whether a layer attends to the same keys as in the base, at any length."""
    name, options = attention.for_layer(layer)
    return width is not None and {"mechanism": name, **options} == _window_spec(width)


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
    attention: LongAttentionConfig, layers: int, causal: bool, base_fields: Collection[str], *, nullable: bool = True
) -> dict[str, Any]:
    """Values of :data:`SERVING_WINDOW_FIELDS` that describe ``attention`` to serving engines.

    If that is impossible, a causal model's ``base_fields`` describe full attention, and an encoder gets no fields.

    Args:
        nullable: whether the base's ``sliding_window`` may be null. If not, only ``layer_types`` says that no layer has a window.
    """
    mechanisms = [prototype(*attention.for_layer(layer)) for layer in range(layers)]
    if not causal:
        widths_around = [band_around(mechanism) for mechanism in mechanisms]
        return {"attention_window": widths_around} if all(widths_around) else {}
    bands = [band_of(mechanism, True) for mechanism in mechanisms]
    # width per layer, None for full attention. Empty if some layer has another kind of attention
    widths = [] if None in bands else [None if band[0] == UNBOUNDED else band[0] + 1 for band in bands if band is not None]
    different = {width for width in widths if width is not None}
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
    """Window width of an encoder layer as in transformers' Longformer, with or without global tokens. ``None`` if the layer has no window
    of equal width on both sides."""
    if isinstance(mechanism, Longformer):
        pattern = mechanism.pattern(False)
        band = None if mechanism.relative is not None else (pattern.left, pattern.right)
    else:
        band = band_of(mechanism, False)
    return None if band is None or band[0] == UNBOUNDED or band[0] != band[1] else 2 * band[0]


def _window_spec(width: int) -> dict[str, Any]:
    return {"mechanism": "window", "window": width}


def flash_window(mechanism: Mechanism, causal: bool) -> int | None:
    """FlashAttention's ``sliding_window`` for a mechanism: :data:`UNBOUNDED` for full attention, ``None`` if it cannot compute it."""
    band = band_of(mechanism, causal) if mechanism.options.order is None else None
    if band is None or not (causal or band[0] == band[1]):
        return None
    return min(band[0] + 1, UNBOUNDED)


def flash_takes_windows(config: Any, requested: str) -> bool:
    """Whether transformers' FlashAttention (``requested``) can compute the mechanisms. If so, registers it with each layer's window.

    It can for text models with plain windows or full attention, if the base supports FlashAttention.
    """
    if not is_flash_attention_requested(requested_attention_implementation=requested) or "|" in requested:
        return False
    family = known_family(config)
    if family is None or not family.spec.flash_windows or family.two_stacks or family.mixin is not None or config.is_encoder_decoder:
        return False
    layers, causal = config.attending
    mechanisms = (prototype(*config.long_attention.for_layer(layer)) for layer in range(layers))
    if any(flash_window(mechanism, causal) is None for mechanism in mechanisms):
        return False
    if not family.base_class(family.base_model_name)._supports_flash_attn:
        return False
    from transformers import AttentionInterface  # imports models, which a config alone does not need

    attend = AttentionInterface().get(requested)
    if attend is not None and not getattr(attend, "takes_windows", False):
        AttentionInterface.register(requested, _with_windows(attend))
    return True


def _with_windows(attend: Any) -> Any:
    """Wrap transformers' FlashAttention function, so that it gets the window of the layer's mechanism."""

    @functools.wraps(attend)
    def attend_in_window(module: nn.Module, *args: Any, is_causal: bool | None = None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        mechanism: Any = getattr(module, "long_attention", None)
        if isinstance(mechanism, Mechanism) and not getattr(module.config, "base_attention_chosen", True):
            causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
            width = flash_window(mechanism, causal)
            if width is not None:
                kwargs["sliding_window"] = None if width == UNBOUNDED else width
        return attend(module, *args, is_causal=is_causal, **kwargs)

    attend_in_window.takes_windows = True  # type: ignore[attr-defined]
    return attend_in_window
