"""Longformer attention: a sliding window, and global tokens that see and are seen by everyone (Beltagy et al. 2020, section 3.1).

Query i sees key j when  |i - j| <= w/2,  or i is global,  or j is global  (and j <= i in the causal form). Each key counts once.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engines.pattern import MaskMod, Pattern
from ..errors import OptionError
from .base import Mechanism
from .options import Options, option, positive
from .registry import register_mechanism
from .sparse import SparseMechanism


@dataclasses.dataclass(frozen=True)
class LongformerOptions(Options):
    window: int = option(512, "total width of the window: w/2 on each side, or the last w keys when causal", "tokens")
    global_tokens: tuple[int, ...] = option(
        (0,), "positions, counted from the first real token, that are global when no global_attention_mask is given", "positions"
    )

    def check(self) -> None:
        positive("longformer", "window", self.window)
        if any(position < 0 for position in self.global_tokens):
            raise OptionError(
                f"Option 'global_tokens' of mechanism 'longformer' is {self.global_tokens}, but positions count from 0; "
                "for example global_tokens=0."
            )


@register_mechanism("longformer")
class Longformer(SparseMechanism):
    """A window plus a few tokens that see, and are seen by, the whole sequence."""

    summary = "sliding window plus global tokens that see and are seen by all"
    paper = "Beltagy et al. 2020, Longformer, §3.1"
    cost = "N·(w+g)"
    exact_when = "window ≥ 2(N−1), or ≥ N when causal, or every token is global"
    takes_globals = True
    options_type = LongformerOptions
    sample: ClassVar[dict[str, Any]] = {"window": 32}

    @classmethod
    def covering(cls, length: int, causal: bool) -> dict[str, Any]:
        return {"window": 2 * length}

    options: LongformerOptions

    def pattern(self, causal: bool) -> Pattern:
        return dataclasses.replace(Pattern.window(self.options.window, causal), has_globals=True)

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        return self.pattern(causal).visible_mod(global_mask)

    def resolve_globals(
        self, padding_mask: Tensor | None, global_mask: Tensor | None, shape: tuple[int, int], device: torch.device
    ) -> Tensor | None:
        """``global_mask`` of the call, or the fixed positions counted from each sequence's first real token; padding is never global."""
        if global_mask is None:
            if not self.options.global_tokens:
                return None
            real = torch.ones(shape, dtype=torch.bool, device=device) if padding_mask is None else padding_mask
            position = real.cumsum(-1) - 1
            wanted = torch.tensor(self.options.global_tokens, device=device)
            return real & (position[..., None] == wanted).any(-1)
        return global_mask if padding_mask is None else global_mask & padding_mask

    def pairs(self, length: int, causal: bool = False) -> int:
        # A global token adds a row and a column, or the column below it when causal.
        crossing = len(self.options.global_tokens) * length * (1 if causal else 2)
        return min(Mechanism.pairs(self, length, causal), super().pairs(length, causal) + crossing)
