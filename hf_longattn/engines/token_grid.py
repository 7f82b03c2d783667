"""Grids of tokens: patches of images and videos, cells of spectrograms, after some prefix tokens.

Importing this module does not import torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ..errors import InputError


@dataclasses.dataclass(frozen=True)
class Grid:
    """The grid of one sequence: ``prefix`` tokens without coordinates, then cells in raster order. The last axis is
    fastest.

    sizes: cells along each axis: ``(height, width)`` of an image in patches, ``(frames, height, width)`` of a video.
    prefix: tokens before the cells, such as a class token and registers.
    """

    sizes: tuple[int, ...]
    prefix: int = 0

    def __post_init__(self) -> None:
        numbers = (*self.sizes, self.prefix)
        # the symbolic numbers of an exported graph are not of type int
        integers = all(isinstance(size, int) or hasattr(size, "__index__") for size in numbers)
        if not self.sizes or not integers or min(self.sizes) < 1 or self.prefix < 0:
            raise InputError(
                f"A grid has sizes {self.sizes!r} and {self.prefix!r} prefix tokens, but every size must be a whole "
                "number of at least 1 and the prefix at least 0; for example Grid((64, 64), prefix=1)."
            )

    def __str__(self) -> str:
        prefix = f"{self.prefix} prefix token{'s' if self.prefix > 1 else ''} and " if self.prefix else ""
        return f"{prefix}{' × '.join(map(str, self.sizes))} cells"

    @property
    def rank(self) -> int:
        return len(self.sizes)

    @property
    def cells(self) -> int:
        return math.prod(self.sizes)

    @property
    def length(self) -> int:
        """The number of tokens, prefix included."""
        return self.prefix + self.cells

    def check(self, tokens: Any) -> None:
        """Raise :class:`InputError` unless the grid has this many tokens."""
        if tokens != self.length:
            raise InputError(
                f"A sequence has {tokens} tokens, but its grid has {self.length}: {self}; pass the grid of this input."
            )

    def coordinates(self, positions: Any) -> tuple[Any, ...]:
        """Coordinates, one per axis, of tokens at ``positions``, an integer or a tensor. Prefix tokens have a negative
        first coordinate."""
        cell = positions - self.prefix
        coordinates = []
        for size in reversed(self.sizes[1:]):  # the last axis is fastest
            coordinates.append(cell % size)
            cell = cell // size
        return (cell, *reversed(coordinates))

    def per_axis(self, values: Sequence[int], name: str) -> tuple[int, ...]:
        """``values`` with one entry for each axis. A single value serves all axes.

        Raises:
            InputError: there are several values, but not one for each axis.
        """
        if len(values) not in (1, self.rank):
            raise InputError(
                f"Option {name!r} has {len(values)} numbers, {'+'.join(map(str, values))}, but the grid has "
                f"{self.rank} axes ({self}); give one number, or one for each axis."
            )
        return tuple(values) if len(values) == self.rank else tuple(values) * self.rank


def grid_of_argument(grid: Grid | Sequence[int] | None, prefix: int) -> Grid:
    """A call's grid from ``grid`` and ``prefix`` of :func:`hf_longattn.attend`.

    Raises:
        InputError: ``grid`` is of another type, or ``prefix`` comes without a grid or with a :class:`Grid`, which has
            its own.
    """
    if grid is None:
        raise InputError(
            f"prefix={prefix} was given without a grid; pass grid=(height, width) as well, or leave prefix out."
        )
    if isinstance(grid, Grid):
        if prefix:
            raise InputError(
                f"prefix={prefix} was passed together with a Grid; pass it to the Grid instead: Grid((64, 64), "
                f"prefix={prefix})."
            )
        return grid
    if not isinstance(grid, Sequence) or isinstance(grid, str):
        raise InputError(f"grid is {grid!r}, but must be sizes such as (64, 64), or a Grid.")
    if any(isinstance(entry, Grid) for entry in grid):
        raise InputError("A call has one grid for all its sequences; call attend() once for the images of each size.")
    return Grid(tuple(grid), prefix)
