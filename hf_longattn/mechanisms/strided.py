"""Strided attention of the Sparse Transformer (Child et al. 2019, section 4.3, the sets A^(1) and A^(2) of strided
attention).

Query i sees key j if j is in the window or the stride s divides i - j (and j <= i in the causal form):

    window      bidirectional:  |i - j| <= w/2         causal:  0 <= i - j < w

The paper has w = s near √N.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..engines.call import GatherTile, MaskMod, Pattern
from .common.capabilities import About
from .common.layout import band_pairs, band_tile, cells, residues
from .common.masked import GatheredMechanism
from .common.options import Options, option
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class StridedOptions(Options):
    window: int = option(
        128, "total width of the window: w/2 on each side, or the last w keys when causal", "tokens", least=1
    )
    stride: int = option(
        128, "s, distance between the keys beyond the window; near √N in the paper", "tokens", least=1
    )


@register_mechanism("strided")
class Strided(GatheredMechanism):
    about = About(
        summary="a window and every s-th key, counted from the query",
        paper="Child et al. 2019, Sparse Transformer, §4.3 (strided)",
        when="data with a period, such as tables, or images read line by line; for text, `longformer` or `bigbird` is "
        "better",
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
        near, stride = self.window(causal).band_mod, self.options.stride
        return lambda b, h, q_idx, kv_idx: near(b, h, q_idx, kv_idx) | ((q_idx - kv_idx) % stride == 0)

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        window = self.window(causal)
        local = band_tile(length, window.left, window.right, device)
        # the strides, without the pairs in the window
        same_residue = residues(length, self.options.stride, device)
        return (local, *cells(same_residue, same_residue, causal=causal, outside=(-window.right, window.left)))

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.options.stride == 1 or self.window(causal).covers(length, length)

    def pairs(self, length: int, causal: bool = False) -> int:
        window, stride = self.window(causal), self.options.stride
        pairs = band_pairs(length, window.left, window.right) + _strides_beyond(window.left, stride, length)
        if not causal:
            pairs += _strides_beyond(window.right, stride, length)
        return pairs


def _strides_beyond(side: int, stride: int, length: int) -> int:
    """Number of pairs on the stride s whose key is more than ``side`` tokens before the query:
    Σ_i max(0, ⌊i/s⌋ - ⌊side/s⌋) over all queries i."""
    return int((torch.arange(length) // stride - side // stride).clamp(min=0).sum())
