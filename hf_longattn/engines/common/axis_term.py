"""A score term of the query and the distance along each axis of a grid. MViTv2, SAM and ViTDet have it as decomposed relative
positions.

    term(i, j) = Σ over axes a of  q_i · R_a[x_a(i) - x_a(j)]

The term is a product of features, q'_i · k'_j: q'_i holds q_i · R_a[x_a(i) - x] for every coordinate x of every axis; k'_j is 1 at j's
coordinates, else 0. With one more feature per coordinate in q and k, a fused kernel adds it without N×N memory, forward and backward.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import graph_property
from .byte_cache import BYTE_CACHE
from .grid import Grid


@dataclasses.dataclass(frozen=True, eq=False)
class AxisTerm:
    """A ``score_mod`` of the query and the distance on every axis. Windows and dense attention compute it as a product of features; any
    other engine looks it up, which takes ``(B, H, N, Σ sizes)`` memory.

    queries: the call's q, ``(B, H, N, D)``, not multiplied by the factor on q·k.
    tables: R of every axis, ``(2·s - 1, D)``: a row for each distance, query - key, from -(s - 1) to s - 1; larger distances are clamped.
    grid: the tokens' grid. Pairs with a prefix token have no term.
    """

    queries: Tensor
    tables: tuple[Tensor, ...]
    grid: Grid

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        cell = (q_idx - self.grid.prefix).clamp(min=0)
        places = [place.clamp(0, size - 1) for place, size in zip(self.grid.places(kv_idx), self.grid.sizes, strict=True)]
        terms = [by_place[b, h, cell, place] for by_place, place in zip(self._by_place, places, strict=True)]
        term = functools.reduce(torch.add, terms)
        if self.grid.prefix:
            term = term.masked_fill((q_idx < self.grid.prefix) | (kv_idx < self.grid.prefix), 0)
        return score + term.to(score.dtype)

    @graph_property
    def _by_place(self) -> list[Tensor]:
        """The term of every cell at every coordinate: ``(B, H, cells, size)`` for each axis."""
        cells = self.queries[:, :, self.grid.prefix :]
        return list(axis_products(cells, self.tables, self.grid.sizes))

    def of_heads(self, heads: Sequence[int]) -> AxisTerm:
        """The term for ``heads`` only, renumbered from 0."""
        return dataclasses.replace(self, queries=self.queries[:, list(heads)])

    def of(self, queries: Tensor, grid: Grid) -> AxisTerm:
        """The same term for ``queries`` on another grid."""
        return dataclasses.replace(self, queries=queries, grid=grid)

    def with_keys_at(self, places: Sequence[Tensor]) -> Tensor:
        """The term ``(B, H, N, K)`` of all queries and K keys. ``places``: key coordinates, ``(K,)`` per axis, even outside the grid."""
        total = self.queries.new_zeros(*self.queries.shape[:3], len(places[0]))
        own = self.grid.places(torch.arange(self.grid.length, device=self.queries.device)[:, None])
        for table, query, key in zip(self.tables, own, places, strict=True):
            total = total + torch.einsum("bhnd,nkd->bhnk", self.queries, _rows(table, query - key).to(self.queries.dtype))
        from_prefix = torch.arange(self.grid.length, device=total.device)[:, None] < self.grid.prefix
        return total.masked_fill(from_prefix, 0)

    def as_features(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """:func:`with_features` of all tokens."""
        return with_features(q, k, v, self.tables, self.grid.sizes, scale, prefix=self.grid.prefix)


def with_features(
    q: Tensor, k: Tensor, v: Tensor, tables: Sequence[Tensor], sizes: Sequence[int], scale: float, *, prefix: int = 0, shared: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with extra features, so that ``scale · q·k`` includes the term. The extra features of v are zeros, since fused kernels
    take heads of one width.

    Args:
        q: ``(B, H, prefix + cells, D)``.
        k, v: ``(B, ·, prefix + shared + cells, D)``.
        tables, sizes: the table and the number of cells of every axis.
        scale: the factor on q·k.
        prefix, shared: tokens before the cells, in q, k and v, and in k and v alone. They have no term.
    """
    products = torch.cat(list(axis_products(q[:, :, prefix:], tables, sizes)), -1) / scale
    places = one_hot_places(tuple(sizes), q.device, k.dtype)[None, None].expand(*k.shape[:2], -1, -1)
    queries = torch.cat([q, F.pad(products.to(q.dtype), (0, 0, prefix, 0))], -1)
    keys = torch.cat([k, F.pad(places, (0, 0, prefix + shared, 0))], -1)
    return queries, keys, F.pad(v, (0, sum(sizes)))


def axis_products(cells: Tensor, tables: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """q_i · R_a[x_a(i) - x] of every axis, ``(B, H, cells, size of the axis)``, for ``cells (B, H, cells, D)`` in raster order."""
    on_grid, products = cells.unflatten(2, tuple(sizes)), []
    for axis, (table, size) in enumerate(zip(tables, sizes, strict=True), 2):
        places = torch.arange(size, device=table.device)
        rows = _rows(table, places[:, None] - places).to(cells.dtype)
        along = on_grid.movedim(axis, 2)
        product = along.reshape(*along.shape[:3], -1, along.shape[-1]) @ rows.transpose(-1, -2)
        products.append(product.reshape(*along.shape[:-1], size).movedim(2, axis).flatten(2, -2))
    return products


def _rows(table: Tensor, distances: Tensor) -> Tensor:
    """The rows ``(…, D)`` of a table for distances ``(…)``, clamped to the table's range."""
    most = (table.shape[0] - 1) // 2
    return table[distances.clamp(-most, most) + most]


def one_hot_places(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """One-hot coordinates of a grid's cells, concatenated over the axes: ``(cells, Σ sizes)``. Cached."""

    def build() -> Tensor:
        places = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).view(-1, len(sizes))
        parts = [F.one_hot(places[:, axis], size) for axis, size in enumerate(sizes)]
        return torch.cat(parts, 1).to(device, dtype)

    return BYTE_CACHE.get(("places as features", sizes, device, dtype), build)
