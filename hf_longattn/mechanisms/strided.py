"""Strided attention of the Sparse Transformer (Child et al. 2019, section 4.3, the sets A^(1) and A^(2) of strided attention).

Query i sees key j if j is in the window or on the stride s (and j <= i in the causal form):

    window      bidirectional:  |i - j| <= w/2         causal:  0 <= i - j < w
    on stride   relative:  s divides i - j             absolute:  j mod s = s - 1

The paper's form is the relative one, with w = s near √N. In the absolute form all queries see the same columns, counted from the first
real token, so a decode cache can drop other keys once they leave the window.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..engines.call import GatherTile, MaskMod, Pattern, rows_of
from .common.capabilities import About
from .common.layout import QUERIES_PER_ROW, band_pairs, band_tile, cells, prefixes, residues
from .common.masked import GatheredMechanism
from .common.options import Options, option
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class StridedOptions(Options):
    window: int = option(128, "total width of the window: w/2 on each side, or the last w keys when causal", "tokens", least=1)
    stride: int = option(128, "s, distance between the keys beyond the window; near √N in the paper", "tokens", least=1)
    columns: str = option(
        "relative",
        "'relative': every stride-th key counted from the query, as in the paper; 'absolute': counted from the start",
        choices=("relative", "absolute"),
    )


@register_mechanism("strided")
class Strided(GatheredMechanism):
    """Softmax over a window and every s-th key."""

    about = About(
        summary="a window and every s-th key, counted from the query or from the start",
        paper="Child et al. 2019, Sparse Transformer, §4.3 (strided)",
        when="data with a period, such as tables, or images read line by line; for text, `longformer` or `bigbird` is better",
        engine="gathered",
        cost="N·(w+N/s)",
        sample={"window": 24, "stride": 16},
        covering=lambda length, causal: {"stride": 1},
    )
    per_head_tensors = ()
    options: StridedOptions

    def window(self, causal: bool) -> Pattern:
        return Pattern.window(self.options.window, causal)

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        near, stride, relative = self.window(causal).band_mod, self.options.stride, self.options.columns == "relative"

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return near(b, h, q_idx, kv_idx) | ((q_idx - kv_idx) % stride == 0 if relative else kv_idx % stride == stride - 1)

        return mod

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        near, stride = self.window(causal), self.options.stride
        within = (-near.right, near.left)
        local = band_tile(length, near.left, near.right, device)
        if self.options.columns == "relative":
            classes = residues(length, stride, device)
            return (local, *cells(classes, classes, causal=causal, outside=within))
        columns = torch.arange(length, device=device)[stride - 1 :: stride]
        rows = rows_of(length, QUERIES_PER_ROW, device)[0, 0]
        seen = [min((row + 1) * QUERIES_PER_ROW, length) // stride if causal else len(columns) for row in range(len(rows))]
        return (local, *prefixes(rows, columns, seen, causal=causal, outside=within))

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.options.stride == 1 or self.window(causal).covers(length, length)

    def pairs(self, length: int, causal: bool = False) -> int:
        near, stride = self.window(causal), self.options.stride
        local = band_pairs(length, near.left, near.right)
        if self.options.columns == "absolute":
            columns = range(stride - 1, length, stride)
            past = sum(max(0, length - 1 - column - near.left) for column in columns)
            return local + past + (0 if causal else sum(max(0, column - near.right) for column in columns))
        far = _strides_beyond(near.left, stride, length)
        return local + (far if causal else far + _strides_beyond(near.right, stride, length))


def _strides_beyond(side: int, stride: int, length: int) -> int:
    """Total over all queries i of the keys on the stride that are more than ``side`` away: Σ_i max(0, ⌊i/s⌋ - ⌊side/s⌋)."""
    steps = max(0, (length - 1) // stride - side // stride)
    first = (side // stride + 1) * stride
    # Query `first` has one such key, and each stride adds one. The length cuts the last stride short.
    return 0 if not steps else stride * (steps * (steps - 1) // 2) + steps * (length - first - (steps - 1) * stride)
