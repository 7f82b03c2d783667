"""Cache layers for mechanisms of finite reach: after w tokens the memory of a layer stays at w - 1 keys and values.

transformers' sliding layer takes one width for the whole model; here the width is part of the layer type's name
(``longattn_window_512``), so that layers may differ.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from ..naming import BACKEND
from .cache_layer import CroppableLayer, compact, enter_layer_type
from .static_cache import StaticWindowLayer


class GrowingWindowLayer(CroppableLayer, DynamicSlidingWindowLayer):
    """Keeps the last ``window - 1`` keys and values; ``update`` returns them together with the new ones."""

    keys: Tensor
    values: Tensor

    def __init__(self, window: int, **kwargs: Any) -> None:
        # transformers' layer keeps `x[-window + 1:]`, which for a window of 1 is everything instead of nothing.
        super().__init__(sliding_window=max(window, 2))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        self.keys, self.values = compact(self.keys), compact(self.values)
        return keys, values

    def cannot_take_back(self, count: int) -> str:
        """Why tokens cannot be taken back: without recording, something was dropped; with it, only tokens since the last time can be."""
        left = int(self.cumulative_length) - count
        if not count or self.keys.shape[2] - count >= min(left, self.sliding_window - 1):
            return ""
        advice = "" if self.record_past else "call cache.activate_past_recording(), or "
        return (
            f"this layer has dropped what the tokens before them see, and keeps {self.keys.shape[2]} tokens; {advice}copy the cache "
            f"(copy.deepcopy){',' if advice else ''} before the tokens that may be taken back."
        )

    def take_back(self, count: int) -> None:
        stop = self.keys.shape[2] - count
        start = max(0, stop - (self.sliding_window - 1))
        self.keys, self.values = self.keys[:, :, start:stop], self.values[:, :, start:stop]
        self.cumulative_length -= count

    def unused(self) -> int:
        """The number of first columns that are neither kept nor needed to count up to the window."""
        return max(0, int(self.cumulative_length) - self.sliding_window)

    def renumber(self, count: int) -> None:
        """Count columns from ``count`` on."""
        self.cumulative_length -= count


def window_layer_type(window: int) -> str:
    """The cache layer type that keeps what a causal window of ``window`` tokens can see."""
    layers = (partial(base, window=window) for base in (GrowingWindowLayer, StaticWindowLayer))
    return enter_layer_type(f"{BACKEND}_window_{window}", *layers)
