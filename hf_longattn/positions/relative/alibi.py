"""ALiBi (Press et al. 2022, Train Short, Test Long, section 3): a penalty that grows with the distance, with a slope for each head.

    term(h, i, j) = -m_h · |i - j|

With H a power of two the slopes are the geometric sequence m_h = 2^(-8 (h+1) / H). For other numbers of heads they are those of the
largest power of two P below H, then every second one of 2P, as in the code of the paper. Nothing is learned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import DistanceOnly


def slopes(num_heads: int) -> Tensor:
    """The penalty per token of every head, ``(H,)`` float32."""
    power = 1 << (num_heads.bit_length() - 1)
    first = 2.0 ** (-8.0 / power * torch.arange(1, power + 1, dtype=torch.float64))
    between = 2.0 ** (-4.0 / power * torch.arange(1, 2 * power, 2, dtype=torch.float64))
    return torch.cat([first, between[: num_heads - power]]).float()


class Alibi(DistanceOnly):
    """Adds ``-slope · |distance|``."""

    name = "alibi"
    summary = "a penalty that grows linearly with the distance, with a fixed slope for each head"
    paper = "Press et al. 2022, Train Short, Test Long, §3"
    neutral = False

    def bias(self, distance: Tensor, causal: bool) -> Tensor:
        of_heads = slopes(self.num_heads).to(distance.device)
        return -of_heads.view(-1, *[1] * distance.dim()) * distance.abs()
