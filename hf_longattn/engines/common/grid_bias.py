"""A learned bias by distance on a grid, as in Swin, BEiT and DiNAT."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import GridError
from .grid import Grid

PREFIX_PAIRS = 3
"""Number of table entries for pairs with prefix tokens. Only the query, only the key, or both are prefix tokens."""


@dataclasses.dataclass(frozen=True)
class GridBias:
    """A ``score_mod`` of the distance on every axis and the head.

    The engines of windows and of tiles with a halo add it as one mask for all windows of a kind, and the engine of lines adds it per
    line. To every other engine it is an ordinary ``score_mod``. A call with a grid sets :attr:`grid`.

    table: ``(H, M)`` or ``(H, M + 3)``, M = Π (2·sᵢ - 1): an entry for every distance, query - key, from -(sᵢ - 1) to sᵢ - 1 on axis i,
        the last axis fastest; larger distances are clamped. Three more entries are for pairs (prefix token, cell), (cell, prefix token)
        and (prefix token, prefix token). Without them, nothing is added to these pairs.
    sizes: s, cells along each axis.
    dilation: cells between neighbouring distances of the table: one number for all axes, or one for each.
    """

    table: Tensor
    sizes: tuple[int, ...]
    dilation: tuple[int, ...] = (1,)
    grid: Grid | None = None

    def __post_init__(self) -> None:
        distances = math.prod(self._distances)
        if self.table.dim() != 2 or self.table.shape[1] not in (distances, distances + PREFIX_PAIRS):
            raise GridError(
                f"A bias for {' × '.join(map(str, self.sizes))} cells has a table of shape {tuple(self.table.shape)}, but {distances} "
                f"distances, or {distances + PREFIX_PAIRS} with those of prefix tokens; pass (heads, distances)."
            )

    @classmethod
    def of_swin(cls, table: Tensor, window: Sequence[int]) -> GridBias:
        """The bias of ``relative_position_bias_table (M, H)`` for windows of these sizes; BEiT's ``(M + 3, H)`` as well."""
        return cls(table.t(), tuple(window))

    @classmethod
    def of_neighborhood(cls, rpb: Tensor, dilation: Sequence[int] = (1,)) -> GridBias:
        """The bias of NAT's and DiNAT's ``rpb (H, 2·k - 1, …)`` for kernels of size k. Its distances are key - query."""
        sizes = tuple((size + 1) // 2 for size in rpb.shape[1:])
        return cls(rpb.flip(tuple(range(1, rpb.dim()))).flatten(1), sizes, tuple(dilation))

    @property
    def _distances(self) -> tuple[int, ...]:
        return tuple(2 * size - 1 for size in self.sizes)

    @property
    def has_prefix(self) -> bool:
        """Whether the table has entries for pairs with prefix tokens."""
        return self.table.shape[1] > math.prod(self._distances)

    @property
    def bound_grid(self) -> Grid:
        """The grid of the call.

        Raises:
            GridError: the call has none.
        """
        if self.grid is None:
            raise self._refusal()
        return self.grid

    def _refusal(self) -> GridError:
        return GridError(
            f"A bias for {' × '.join(map(str, self.sizes))} cells was given to a call "
            f"{'without a grid' if self.grid is None else f'on another grid, {self.grid}'}; pass grid= with {len(self.sizes)} sizes."
        )

    def on(self, grid: Grid | None) -> GridBias:
        """This bias bound to the grid of a call.

        Raises:
            GridError: the grid has another rank.
        """
        bound = self if grid is None or grid == self.grid else dataclasses.replace(self, grid=grid)
        if bound.grid is not None and bound.grid.rank != len(self.sizes):
            raise bound._refusal()
        return bound

    def __add__(self, other: GridBias) -> GridBias:
        """The sum of two biases for the same sizes."""
        return dataclasses.replace(self, table=self.table + other.table)

    def of_heads(self, heads: Sequence[int]) -> GridBias:
        """The bias for ``heads`` only, renumbered from 0."""
        return dataclasses.replace(self, table=self.table[list(heads)])

    def entries(self, distances: Sequence[Tensor]) -> Tensor:
        """Table indices for distances, query - key, on every axis. The tensors broadcast."""
        index: Tensor | int = 0
        dilation = self.dilation if len(self.dilation) == len(self.sizes) else self.dilation * len(self.sizes)
        for distance, size, step in zip(distances, self.sizes, dilation, strict=True):
            nearest = (distance if step == 1 else torch.div(distance, step, rounding_mode="floor")).clamp(1 - size, size - 1)
            index = index * (2 * size - 1) + nearest + (size - 1)
        assert isinstance(index, Tensor)
        return index

    def over(self, entries: Tensor) -> Tensor:
        """The bias ``(H, …)`` at table indices ``entries (…)``."""
        return self.table[:, entries.flatten().to(self.table.device)].unflatten(1, entries.shape)

    def of_pairs(self, kind: int) -> Tensor | None:
        """The bias ``(H,)`` of pairs with prefix tokens; ``None`` without one. ``kind`` is 0 … 2, ordered as in :data:`PREFIX_PAIRS`."""
        return self.table[:, kind - PREFIX_PAIRS] if self.has_prefix else None

    def with_prefix(self, term: Tensor, prefix: int) -> Tensor:
        """``term (…, H, T, keys)``, the bias of cells, with columns in front for ``prefix`` prefix tokens. All cells see these."""
        if not prefix:
            return term
        of_prefix = self.of_pairs(1)
        front = term.new_zeros(()) if of_prefix is None else of_prefix[:, None, None]
        return torch.cat([front.expand(*term.shape[:-1], prefix), term], -1)

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        grid = self.bound_grid
        distances = [torch.as_tensor(q - k) for q, k in zip(grid.places(q_idx), grid.places(kv_idx), strict=True)]
        entries = self.entries(distances)
        if not grid.prefix:
            return score + self.table[h, entries]
        from_prefix, to_prefix = q_idx < grid.prefix, kv_idx < grid.prefix
        if not self.has_prefix:
            return score + self.table[h, entries].masked_fill(from_prefix | to_prefix, 0)
        first = self.table.shape[1] - PREFIX_PAIRS
        of_prefix = torch.where(to_prefix, first + 2, first)
        entries = torch.where(from_prefix, of_prefix, torch.where(to_prefix, first + 1, entries))
        return score + self.table[h, entries]


def tile_distances(sizes: Sequence[int], key_sizes: Sequence[int], ahead: Sequence[int], steps: Sequence[int]) -> list[Tensor]:
    """Distances, query - key, between a tile's cells and its keys, one tensor per axis. They broadcast over all axes of both.

    Args:
        sizes, key_sizes: queries and keys along each axis.
        ahead: steps from the first key to the first query along each axis.
        steps: cells in one step along each axis.
    """
    rank, distances = len(sizes), []
    for axis, (size, key_size, first, step) in enumerate(zip(sizes, key_sizes, ahead, steps, strict=True)):
        distance = (torch.arange(first, first + size)[:, None] - torch.arange(key_size)) * step
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = size, key_size
        distances.append(distance.view(shape))
    return distances


def why_not_added(score_mod: Any) -> str | None:
    """Why tiles of a grid do not add this score term, as a clause. ``None`` if they do."""
    if score_mod is None or isinstance(score_mod, GridBias):
        return None
    return "a score term other than a bias by distance on the grid is added to listed pairs"
