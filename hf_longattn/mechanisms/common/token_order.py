"""The reading order of a grid's tokens, as a table of positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engines.common.byte_cache import BYTE_CACHE
from ...engines.common.grid import Grid, check_order


def token_order(grid: Grid, order: str, device: torch.device) -> Tensor:
    """Positions of a grid's tokens in ``order``, ``(L,)`` int64, the prefix first. An empty place is -1.

    Every tile has the same number of places, so that blocks of that size are tiles. Where the grid is not a multiple of the tile, the tiles
    at its border have empty places. The prefix has tiles of its own.
    """
    return BYTE_CACHE.get(("token order", grid, order, device), lambda: _token_order(grid, order).to(device))


def _token_order(grid: Grid, order: str) -> Tensor:
    cells = torch.arange(grid.cells).view(grid.sizes)
    prefix = torch.arange(grid.prefix)
    if order == "columns":
        cells = cells.permute(*reversed(range(grid.rank)))
    elif order == "hilbert":
        cells = cells.flatten()[_hilbert(grid.sizes)]
    elif order != "raster":
        tile = grid.per_axis([int(size) for size in check_order(order).removeprefix("tiles:").split("x")], "order")
        short = [-size % side for size, side in zip(grid.sizes, tile, strict=True)]
        cells = F.pad(cells, [pad for size in reversed(short) for pad in (0, size)], value=-1 - grid.prefix)
        counts = [size // side for size, side in zip(cells.shape, tile, strict=True)]
        cells = cells.view([size for pair in zip(counts, tile, strict=True) for size in pair])
        cells = cells.permute(*range(0, 2 * grid.rank, 2), *range(1, 2 * grid.rank, 2))
        prefix = F.pad(prefix, (0, -grid.prefix % math.prod(tile)), value=-1)
    return torch.cat([prefix, cells.flatten() + grid.prefix])


def _hilbert(sizes: Sequence[int]) -> Tensor:
    """A grid's cells along a Hilbert curve (Skilling 2004). The curve fills the smallest power-of-two cube that holds the grid."""
    rank, bits = len(sizes), max(1, max(size - 1 for size in sizes).bit_length())
    axes = list(torch.stack(torch.meshgrid(*map(torch.arange, sizes), indexing="ij"), -1).flatten(0, -2).unbind(-1))
    high = 1 << (bits - 1)
    bit = high
    while bit > 1:  # undo the excess work: inverse of Skilling's transform, from the highest bit
        low = bit - 1
        for axis in range(rank):
            flip = (axes[axis] & bit) != 0
            swapped = (axes[0] ^ axes[axis]) & low
            first = torch.where(flip, axes[0] ^ low, axes[0] ^ swapped)
            axes[axis] = torch.where(flip, axes[axis], axes[axis] ^ swapped) if axis else first
            axes[0] = first
        bit >>= 1
    for axis in range(1, rank):  # Gray code
        axes[axis] = axes[axis] ^ axes[axis - 1]
    gray, bit = torch.zeros_like(axes[0]), high
    while bit > 1:
        gray = torch.where((axes[-1] & bit) != 0, gray ^ (bit - 1), gray)
        bit >>= 1
    axes = [axis ^ gray for axis in axes]
    distance = torch.zeros_like(axes[0])
    for place in range(bits - 1, -1, -1):
        for axis_bits in axes:
            distance = (distance << 1) | ((axis_bits >> place) & 1)
    return distance.argsort()
