"""The window in parts: what heads with a dilation run, and what a union joins.

The tokens at positions of equal residue modulo d attend among themselves by a plain window, so the cost is that of a window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..engines.pattern import GatherTile, MaskMod, Pattern
from .gathered import GatheredMechanism
from .layout import band
from .window_mask import WindowMask


class DilatedWindow(WindowMask, GatheredMechanism):
    """``window`` on the gathered engine; built by it, not by name."""

    name = "window"

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        pattern, sinks = Pattern.window(self.options.window, causal), self.options.num_sinks

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return dilated_band(pattern, self.dilations, h, q_idx, kv_idx) | ((kv_idx < sinks) & (kv_idx >= 0))

        return mod

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        each = sorted(set(self.dilations))
        if len(each) == 1:
            return tuple(self._parts_of(each[0], length, causal, device))
        of_head = torch.tensor(self.dilations, device=device).view(1, -1, 1, 1)
        return tuple(
            dataclasses.replace(part, queries=torch.where(of_head == dilation, part.queries, -1))
            for dilation in each
            for part in self._parts_of(dilation, length, causal, device)
        )

    def _parts_of(self, dilation: int, length: int, causal: bool, device: torch.device) -> Iterator[GatherTile]:
        pattern = Pattern.window(self.options.window, causal)
        near = band(length, pattern.left, pattern.right, device, dilation)
        yield near
        if not self.options.num_sinks:
            return
        # Sinks of the queries' own residue are left out where the window has them; the others never lie in it.
        sinks = torch.arange(min(self.options.num_sinks, length), device=device)
        own = near.queries[..., :1] % dilation == sinks % dilation
        within = (-pattern.right * dilation, pattern.left * dilation)
        yield GatherTile(near.queries, torch.where(own, sinks, -1), causal=causal, outside=within)
        if dilation > 1:
            yield GatherTile(near.queries, torch.where(own, -1, sinks), causal=causal)


def dilated_band(pattern: Pattern, dilations: tuple[int, ...], h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """Which keys lie in the window of head h, as a mask_mod says it."""
    dilation = torch.tensor(dilations, device=q_idx.device)[h]
    away = q_idx - kv_idx
    return (away % dilation == 0) & (away <= pattern.left * dilation) & (-away <= pattern.right * dilation)
