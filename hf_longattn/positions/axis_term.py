"""Decomposed relative positions on a grid, as a score term: MViTv2, SAM, ViTDet."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.common.batch import graph_property
from ..engines.common.byte_cache import BYTE_CACHE
from ..engines.common.grid import Grid
from ..engines.common.score_terms import ScoreTerm


@dataclasses.dataclass(frozen=True, eq=False)
class AxisTerm(ScoreTerm):
    """A ``score_mod`` of the query and the distance on every axis of a grid: decomposed relative positions.

        term(i, j) = Σ over axes a of  q_i · R_a[x_a(i) - x_a(j)]

    The term is a product of features, q'_i · k'_j: q'_i holds q_i · R_a[x_a(i) - x] for every coordinate x of every axis; k'_j is 1 at j's
    coordinates, else 0. With one more feature per coordinate in q and k, a fused kernel adds it without N×N memory, forward and backward.
    Windows and dense attention do so. Any other engine looks the term up, which takes ``(B, H, N, Σ sizes)`` memory.

    queries: the call's q, ``(B, H, N, D)``, not multiplied by the factor on q·k.
    tables: R of every axis, ``(2·s - 1, D)``: a row for each distance, query - key, from -(s - 1) to s - 1; larger distances are clamped.
    grid: the tokens' grid. Pairs with a prefix token have no term.
    """

    queries: Tensor
    tables: tuple[Tensor, ...]
    grid: Grid

    engines = ("dense", "windows")

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
        return axis_products(cells, self.tables, self.grid.sizes)

    def of_heads(self, heads: Sequence[int], device: torch.device | None = None) -> AxisTerm:
        return dataclasses.replace(self, queries=self.queries[:, list(heads)])

    def on_larger(self, grid: Grid, queries: Tensor) -> AxisTerm:
        return dataclasses.replace(self, queries=queries, grid=grid)

    def beyond_grid(self, places: Sequence[Tensor]) -> Tensor:
        total = self.queries.new_zeros(*self.queries.shape[:3], len(places[0]))
        query_places = self.grid.places(torch.arange(self.grid.length, device=self.queries.device)[:, None])
        for table, query, key in zip(self.tables, query_places, places, strict=True):
            total = total + torch.einsum("bhnd,nkd->bhnk", self.queries, _rows(table, query - key).to(self.queries.dtype))
        from_prefix = torch.arange(self.grid.length, device=total.device)[:, None] < self.grid.prefix
        return total.masked_fill(from_prefix, 0)

    def as_features(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, sizes: Sequence[int] | None = None, shared: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """More features of q and k. Those of v are zeros, since fused kernels take heads of one width."""
        prefix = self.grid.prefix if sizes is None else 0
        sizes = self.grid.sizes if sizes is None else tuple(sizes)
        products = torch.cat(axis_products(q[:, :, prefix:], self.tables, sizes), -1) / scale
        places = one_hot_places(sizes, q.device, k.dtype)[None, None].expand(*k.shape[:2], -1, -1)
        queries = torch.cat([q, F.pad(products.to(q.dtype), (0, 0, prefix, 0))], -1)
        keys = torch.cat([k, F.pad(places, (0, 0, prefix + shared, 0))], -1)
        return queries, keys, F.pad(v, (0, sum(sizes)))


def axis_products(cells: Tensor, tables: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """q_i · R_a[x_a(i) - x] of every axis, ``(B, H, cells, size of the axis)``.

    cells: queries q, ``(B, H, cells, D)``, in raster order.
    """
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
