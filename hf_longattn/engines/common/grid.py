"""Where tokens lie that are not a line of text: patches of a picture or a video, cells of a spectrogram, after some prefix tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import GridError
from .byte_cache import BYTE_CACHE
from .order_text import check_order

RUNNING_GRID: ContextVar[Grid | tuple[Grid, ...] | None] = ContextVar("grid", default=None)
"""The grid of the model that runs in this thread, for attention modules that keyword arguments do not reach."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """The cells of one sequence: ``prefix`` tokens without a place, then the cells of ``sizes`` in raster order, the last axis fastest.

    sizes: cells along each axis: ``(height, width)`` of a picture in patches, ``(frames, height, width)`` of a video.
    prefix: tokens before the cells, such as a class token and registers.
    """

    sizes: tuple[int, ...]
    prefix: int = 0

    def __post_init__(self) -> None:
        whole = all(isinstance(size, int | torch.SymInt) for size in (*self.sizes, self.prefix))
        if not self.sizes or not whole or min(self.sizes) < 1 or self.prefix < 0:
            raise GridError(
                f"A grid has sizes {self.sizes!r} and {self.prefix!r} prefix tokens, but every size must be a whole number of at least 1 "
                "and the prefix at least 0; for example Grid((64, 64), prefix=1)."
            )

    def __str__(self) -> str:
        prefix = f"{self.prefix} prefix token{'s' if self.prefix > 1 else ''} and " if self.prefix else ""
        return f"{prefix}{' × '.join(map(str, self.sizes))} cells"

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.sizes)

    @property
    def cells(self) -> int:
        """The number of cells."""
        return math.prod(self.sizes)

    @property
    def length(self) -> int:
        """The number of tokens, prefix included."""
        return self.prefix + self.cells

    def check(self, tokens: Any) -> None:
        """Raise :class:`GridError` unless the grid has this many tokens."""
        if tokens != self.length:
            raise GridError(f"A sequence has {tokens} tokens, but its grid has {self.length}: {self}; pass the grid of this input.")

    def places(self, positions: Any) -> tuple[Any, ...]:
        """The place of tokens at ``positions`` (integers, or a tensor of them) on every axis; negative somewhere for prefix tokens."""
        rest, places = positions - self.prefix, []
        for size in reversed(self.sizes[1:]):
            places.append(rest % size)
            rest = rest // size
        return (rest, *reversed(places))

    def per_axis(self, values: Sequence[int], name: str) -> tuple[int, ...]:
        """``values`` with one entry for each axis: a single one serves all.

        Raises:
            GridError: there are several, and not as many as axes.
        """
        if len(values) not in (1, self.rank):
            raise GridError(
                f"Option {name!r} has {len(values)} numbers, {'+'.join(map(str, values))}, but the grid has {self.rank} axes "
                f"({self}); give one number, or one for each axis."
            )
        return tuple(values) if len(values) == self.rank else tuple(values) * self.rank


def grid_of_argument(grid: Grid | Sequence[int] | Sequence[Grid] | None, prefix: int) -> Grid | tuple[Grid, ...] | None:
    """The ``grid`` and ``prefix`` of :func:`hf_longattn.attend` as a call has them: one grid, or one for each sequence.

    Raises:
        GridError: neither, or both a :class:`Grid` and a prefix.
    """
    if grid is None:
        if prefix:
            raise GridError(f"prefix={prefix} was given without a grid; pass grid=(height, width) as well, or leave prefix out.")
        return None
    if isinstance(grid, Grid) or (isinstance(grid, Sequence) and any(isinstance(entry, Grid) for entry in grid)):
        if prefix:
            raise GridError(f"prefix={prefix} was given next to a Grid, which says its prefix itself: Grid((64, 64), prefix={prefix}).")
        if isinstance(grid, Grid):
            return grid
        if all(isinstance(entry, Grid) for entry in grid):
            return tuple(entry for entry in grid if isinstance(entry, Grid))
    elif isinstance(grid, Sequence) and not isinstance(grid, str):
        return Grid(tuple(grid), prefix)  # type: ignore[arg-type]
    raise GridError(f"grid is {grid!r}, but must be sizes such as (64, 64), a Grid, or a list with the Grid of every sequence.")


def token_order(grid: Grid, order: str, device: torch.device) -> Tensor:
    """The positions of a grid's tokens in ``order``, ``(L,)`` int64 with the prefix in front; -1 for a place that no token fills.

    Tiles have as many places each, so that blocks of that size are tiles: those at the border of a grid that is no multiple of them are
    filled up, and the prefix has tiles of its own.
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
    """The cells of a grid along a Hilbert curve of the smallest cube of a power of two that holds it (Skilling 2004)."""
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
