"""Sliding windows of the base, and which layers keep them.

Mistral and Phi-3 may look back a window in every layer; Qwen, Gemma 2 and 3, SmolLM3 and ModernBERT in some, which their ``layer_types``
name. A layer of the latter keeps its window unless ``long_attention`` names that layer (or mechanisms that all layers take in turn): the
mechanism chosen for the model goes where the base had full attention. Where all layers have one, the mechanism that is chosen takes its
place, and without a choice they keep it.
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
    """The window of every layer of a model with this config, in the meaning of mechanism ``window``; ``None`` for full attention."""
    width, layers = getattr(config, "sliding_window", None), config.num_hidden_layers
    if width is None:
        return [None] * layers
    if hasattr(config, "local_attention"):
        width = 2 * width  # ModernBERT says to either side
    elif getattr(config, "use_bidirectional_attention", None):
        width = 2 * (width - 1)  # there, the config's number is the distance that is just out of reach
    types = config.__dict__.get("layer_types")
    return [width if types is None or kind == SLIDING else None for kind in types or [SLIDING] * layers]


def with_own_windows(chosen: Mapping[str, Any] | LongAttentionConfig | None, windows: list[int | None]) -> LongAttentionConfig:
    """``chosen`` with the base's own windows in the layers that keep theirs.

    Args:
        chosen: what was asked for, or ``None``.
        windows: of every layer of the base.
    """
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
    for layer, width in enumerate(windows):
        if width is not None:
            if not keeps_window(attention, layer, width):
                return False
        else:
            mechanism = prototype(*attention.for_layer(layer))
            if mechanism.relative is not None or not mechanism.covers(UNBOUNDED, causal):
                return False
    return True


def _kept(width: int) -> dict[str, Any]:
    return {"mechanism": "window", "window": width}
