"""Means over a fixed number of segments of a text: nearly equal runs of its real tokens, wherever its padding is.

Of n real tokens, M segments take ⌊n/M⌋ or one more, the shorter ones first; of fewer than M tokens each has a segment of its own and
the segments left over are empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..engines.low_rank import project_length


def segment_matrix(real: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """The average as a matrix ``(B, M, N)``: 1 / (tokens of the segment) where a real token of ``real (B, N)`` is in it."""
    number = real.sum(-1, keepdim=True)
    token = real.long().cumsum(-1) - 1
    size = number // count
    shorter = (size + 1) * count - number
    boundary = shorter * size
    segment = torch.where(token < boundary, token // size.clamp(min=1), shorter + (token - boundary) // (size + 1))
    within = (segment[:, None] == torch.arange(count, device=real.device)[:, None]) & real[:, None]
    return within.to(dtype) / within.sum(-1, keepdim=True).clamp(min=1)


def segment_means(x: Tensor, count: int) -> Tensor:
    """The means of the segments of ``x (B, H, N, D)``, all of whose tokens are real, ``(B, H, M, D)``; of fewer than M tokens, ``x``."""
    length = x.shape[2]
    if length <= count:
        return x
    if torch.compiler.is_exporting():  # slices at places that follow from the length cannot stand in one graph for all lengths
        everything = torch.ones(1, length, dtype=torch.bool, device=x.device)
        return project_length(segment_matrix(everything, count, x.dtype).transpose(1, 2)[:, None], x)
    size = length // count
    shorter = (size + 1) * count - length
    means = [x[:, :, : shorter * size].unflatten(2, (shorter, size)).mean(3)]
    if shorter < count:
        means.append(x[:, :, shorter * size :].unflatten(2, (count - shorter, size + 1)).mean(3))
    return torch.cat(means, 2)
