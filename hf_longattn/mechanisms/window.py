"""Sliding window attention (Beltagy et al. 2020, Longformer, section 3.1; Jiang et al. 2023, Mistral, for the causal form).

A window of total width w lets query i see key j when

    bidirectional:  |i - j| <= w/2          causal:  0 <= i - j < w
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor

from ..engines.pattern import MaskMod, Pattern
from .options import Options, option, positive
from .registry import register_mechanism
from .sparse import SparseMechanism


@dataclasses.dataclass(frozen=True)
class WindowOptions(Options):
    window: int = option(512, "total width of the window: w/2 on each side, or the last w keys when causal", "tokens")

    def check(self) -> None:
        positive("window", "window", self.window)


@register_mechanism("window")
class Window(SparseMechanism):
    """Each token sees its neighbours within a fixed distance."""

    summary = "each token sees the w tokens around it (the last w when causal)"
    paper = "Beltagy et al. 2020, Longformer, §3.1; causal: Jiang et al. 2023, Mistral 7B"
    cost = "N·w"
    exact_when = "window ≥ 2(N−1), or ≥ N when causal"
    options_type = WindowOptions
    sample: ClassVar[dict[str, Any]] = {"window": 32}

    @classmethod
    def covering(cls, length: int, causal: bool) -> dict[str, Any]:
        return {"window": 2 * length}

    options: WindowOptions

    def pattern(self, causal: bool) -> Pattern:
        return Pattern.window(self.options.window, causal)

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        return self.pattern(causal).band_mod

    def reach(self, causal: bool = True) -> int | None:
        return self.options.window
