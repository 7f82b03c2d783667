"""Cache layers for mechanisms that see the last w tokens. A growing layer holds at most max(w - 1, 1) keys between steps.

transformers' sliding layer takes one width for the whole model. Here the width is part of the layer type's name
(``longattn_window_512``), so layers may differ.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from ..names import BACKEND
from .cache_layer import compact, enter_layer_type
from .static_cache import StaticWindowLayer


class GrowingWindowLayer(DynamicSlidingWindowLayer):
    """The last ``window - 1`` keys and values (at least one). ``update`` returns them together with the new ones."""

    keys: Tensor
    values: Tensor

    def __init__(self, window: int, **kwargs: Any) -> None:
        # transformers' layer keeps `x[-window + 1:]`, which for a window of 1 is everything instead of nothing.
        super().__init__(sliding_window=max(window, 2))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        self.keys, self.values = compact(self.keys), compact(self.values)
        return keys, values

    def unused(self) -> int:
        """The number of columns at the start that the mask may drop. At least ``sliding_window`` columns remain."""
        return max(0, int(self.cumulative_length) - self.sliding_window)

    def renumber(self, count: int) -> None:
        """Renumber the columns, so that column ``count`` becomes column 0."""
        self.cumulative_length -= count


def window_layer_type(window: int) -> str:
    """The cache layer type for a causal window of ``window`` tokens."""
    layers = (partial(base, window=window) for base in (GrowingWindowLayer, StaticWindowLayer))
    return enter_layer_type(f"{BACKEND}_window_{window}", *layers)
