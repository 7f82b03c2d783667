"""What a sliding window lets a token see, with dilation and sinks: options, counts and reach, however an engine visits it."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from ..engines.pattern import Pattern
from ..errors import OptionError
from .counting import band_pairs, column_pairs
from .masked import MaskedMechanism
from .options import Options, option, positive


@dataclasses.dataclass(frozen=True)
class WindowOptions(Options):
    window: int = option(512, "total width of the window: w/2 on each side, or the last w keys when causal", "tokens")
    num_sinks: int = option(0, "how many tokens from the first real one on everyone keeps seeing (attention sinks)", "tokens")
    dilation: tuple[int, ...] = option((1,), "distance between the keys of a window: one number, or one for each head", "tokens")

    def check(self) -> None:
        positive("window", "window", self)
        if self.num_sinks < 0:
            raise OptionError(
                f"Option 'num_sinks' of mechanism 'window' is {self.num_sinks}, but must be at least 0; for example num_sinks=4."
            )
        if not self.dilation or min(self.dilation) < 1:
            raise OptionError(
                f"Option 'dilation' of mechanism 'window' is {self.dilation}, but must be one number from 1 on, or one for each head; "
                "for example dilation=2."
            )

    def telling_heads(self) -> int:
        return len(self.dilation)


class WindowMask(MaskedMechanism):
    """A window whose head h has dilation ``dilations[h]``, and sinks."""

    options: WindowOptions

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: WindowOptions) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        if len(options.dilation) not in (1, num_heads):
            raise OptionError(
                f"Option 'dilation' of mechanism 'window' has {len(options.dilation)} entries for {num_heads} heads; "
                "give one number, or one for each head."
            )
        self.dilations = options.dilation if len(options.dilation) == num_heads else options.dilation * num_heads

    @property
    def takes_packed(self) -> bool:  # type: ignore[override]
        return not self.options.num_sinks

    @property
    def _span(self) -> int:
        """Distance from a causal query to the first key behind its window."""
        return (self.options.window - 1) * max(self.dilations) + 1

    def reach(self, causal: bool = True) -> int | None:
        return None if self.options.num_sinks else self._span

    def kept(self, positions: Tensor, upcoming: Tensor) -> Tensor | None:
        return (positions > upcoming - self._span) | (positions < self.options.num_sinks) if self.options.num_sinks else None

    def covers(self, length: int, causal: bool = False) -> bool:
        sinks = self.options.num_sinks
        if length <= max(sinks, 1) or max(self.dilations) > 1:
            return length <= max(sinks, 1)
        return length <= self.options.window + sinks if causal else Pattern.window(self.options.window, False).covers(length, length)

    def pairs(self, length: int, causal: bool = False) -> int:
        """The mean over the heads, rounded down."""
        return sum(self._pairs(length, causal, dilation) for dilation in self.dilations) // self.num_heads

    def _pairs(self, length: int, causal: bool, dilation: int) -> int:
        pattern, sinks = Pattern.window(self.options.window, causal), range(min(self.options.num_sinks, length))
        total = 0
        for residue in range(min(dilation, length)):
            members = len(range(residue, length, dilation))
            own = range(len(sinks[residue::dilation]))
            total += band_pairs(members, pattern.left, pattern.right) + column_pairs(own, members, pattern.left, pattern.right, causal)
            others = [sink for sink in sinks if sink % dilation != residue]
            total += sum(len(range(residue, length, dilation)) - (len(range(residue, sink, dilation)) if causal else 0) for sink in others)
        return total
