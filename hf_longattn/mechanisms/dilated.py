"""Dilated sliding window (Beltagy et al. 2020, Longformer, section 3.1, figure 2c) with attention sinks: the form of
:mod:`hf_longattn.mechanisms.window` that heads with one dilation d > 1 run.

The tokens at positions of equal residue modulo d attend among themselves by a plain window, so the cost is that of a window.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..engines.gathered import Part
from ..engines.pattern import MaskMod, Pattern
from .gathered import GatheredMechanism
from .layout import band
from .options import Options


@dataclasses.dataclass(frozen=True)
class DilatedOptions(Options):
    """As :class:`hf_longattn.mechanisms.window.WindowOptions`, with one dilation for all heads."""

    window: int
    num_sinks: int
    dilation: int


class DilatedWindow(GatheredMechanism):
    """The heads of one dilation; built by ``window``, not by name."""

    options: DilatedOptions

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        pattern, dilation, sinks = Pattern.window(self.options.window, causal), self.options.dilation, self.options.num_sinks

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            near = ((q_idx - kv_idx) % dilation == 0) & pattern.stretched(dilation)(b, h, q_idx, kv_idx)
            return near | ((kv_idx < sinks) & (kv_idx >= 0))

        return mod

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[Part, ...]:
        pattern, dilation = Pattern.window(self.options.window, causal), self.options.dilation
        near = band(length, pattern.left, pattern.right, device, dilation)
        if not self.options.num_sinks:
            return (near,)
        # Sinks of the queries' own residue are left out where the window has them; the others never lie in it.
        sinks = torch.arange(min(self.options.num_sinks, length), device=device)
        own = near.queries[..., :1] % dilation == sinks % dilation
        within = (-pattern.right * dilation, pattern.left * dilation)
        return (
            near,
            Part(near.queries, torch.where(own, sinks, -1), causal=causal, outside=within),
            Part(near.queries, torch.where(own, -1, sinks), causal=causal),
        )
