"""Sliding windows of the base, and which layers keep them.

Mistral and Phi-3 may have a sliding window in every layer; Qwen, Gemma 2 and 3, SmolLM3 and ModernBERT in some, listed in ``layer_types``.
If only some layers have one, they keep it unless ``long_attention`` names them (or mechanisms that all layers take in turn); the mechanism
of the model then replaces full attention. If all layers have one, a chosen mechanism replaces it; without a choice they keep it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..configuration import LongAttentionConfig
from ..engines.call import UNBOUNDED
from ..mechanisms.registry import prototype

SLIDING = "sliding_attention"
"""transformers' name for a layer with a window, in ``config.layer_types``."""


def own_windows(config: Any) -> list[int | None]:
    """The width of every layer's window, as mechanism ``window`` counts it; ``None`` for full attention."""
    width, layers = getattr(config, "sliding_window", None), config.num_hidden_layers
    if width is None:
        return [None] * layers
    if hasattr(config, "local_attention"):
        width = 2 * width  # ModernBERT counts tokens to either side
    elif getattr(config, "use_bidirectional_attention", None):
        width = 2 * (width - 1)  # the config's number is the first distance out of reach
    types = config.__dict__.get("layer_types")
    return [width if types is None or kind == SLIDING else None for kind in types or [SLIDING] * layers]


def with_own_windows(chosen: Mapping[str, Any] | LongAttentionConfig | None, windows: list[int | None]) -> LongAttentionConfig:
    """``chosen``, or the default for ``None``, with the base's windows (:func:`own_windows`) in the layers that keep theirs."""
    given = LongAttentionConfig.from_dict(chosen)
    widths = [width for width in windows if width is not None]
    if chosen is None and widths and len(set(windows)) == 1:
        return LongAttentionConfig("window", window=widths[0])
    if not widths or given.turns or len(widths) == len(windows):
        return given
    kept = {layer: _kept(width) for layer, width in enumerate(windows) if width is not None and layer not in given.layers}
    return LongAttentionConfig(given.mechanism, {**kept, **given.layers}, **given.options) if kept else given


def keeps_window(attention: LongAttentionConfig, layer: int, width: int | None) -> bool:
    """Whether a layer attends to the same keys as in the base, at any length."""
    name, options = attention.for_layer(layer)
    return width is not None and {"mechanism": name, **options} == _kept(width)


def equals_base(attention: LongAttentionConfig, windows: list[int | None], causal: bool) -> bool:
    """Whether every layer computes, for inputs of any length, what the base's own attention computes."""

    def equals(layer: int, width: int | None) -> bool:
        if width is not None:
            return keeps_window(attention, layer, width)
        mechanism = prototype(*attention.for_layer(layer))
        return mechanism.relative is None and mechanism.covers(UNBOUNDED, causal)

    return all(equals(layer, width) for layer, width in enumerate(windows))


def _kept(width: int) -> dict[str, Any]:
    return {"mechanism": "window", "window": width}
