"""Split a tile of query-key pairs into calls of the CPU's fused kernel.

Tile rows of equally spaced tokens, with a constant step from row to row, are read as a strided *view*. Other rows are gathered by index. A
few rows are computed at a time, so that gathered tokens stay in the CPU cache and their memory is reused. The layout depends on the tile
and on numbers such as lengths, not on q, k and v. It is cached as long as the tile's index tensors exist.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..byte_cache import BYTE_CACHE
from ..call import GatherTile
from .softmax import Runs

CHUNK_BYTES = 800
"""Estimated size of a :class:`Chunk`, in bytes."""
MAX_DISTANCE, POSITION_OFFSET = 1 << 30, 1 << 28
"""Larger than any distance of two positions, and than any position. The offset keeps relative positions positive."""
NO_PAIR, NO_MASK, KEY_MASK, PAIR_MASK = -1, 0, 1, 2
"""Mask of a tile row: nothing visible (row skipped), no mask, one mask over keys for all its queries, or one per query-key pair."""


class Rules(NamedTuple):
    """Pairs with ``low <= query - key <= high`` are visible, except those with ``hidden_low <= query - key <= hidden_high``."""

    low: int = -MAX_DISTANCE
    high: int = MAX_DISTANCE
    hidden_low: int = MAX_DISTANCE
    hidden_high: int = -MAX_DISTANCE

    @classmethod
    def of(cls, tile: GatherTile) -> Rules:
        low, high = tile.inside or (-MAX_DISTANCE, MAX_DISTANCE)
        bounds = (max(low, 0) if tile.causal else low, high, *(tile.outside or (MAX_DISTANCE, -MAX_DISTANCE)))
        return cls(*(max(-MAX_DISTANCE, min(MAX_DISTANCE, x)) for x in bounds))


class TileSpec(NamedTuple):
    """One tile as the operator receives it; see :class:`hf_longattn.engines.call.GatherTile`."""

    queries: Tensor
    keys: Tensor
    bias: Tensor | None
    rules: Rules


class _Row(NamedTuple):
    """One tile row: tokens ``start + i * stride`` for i < size, in slots from ``slot`` on. The next row's tokens are higher by ``step``."""

    start: int
    stride: int
    size: int
    slot: int
    step: int = 0

    def runs(self, row: int, count: int, first: int, size: int) -> Runs:
        """The tokens ``first … first + size - 1`` of ``count`` rows, which begin ``row`` rows after this one."""
        return Runs(self.start + row * self.step + first * self.stride, size, count, self.step, self.stride)


class Chunk(NamedTuple):
    """The part of a tile in one kernel call: some heads, rows and query slots. It has all keys of its rows."""

    heads: slice
    rows: slice
    slots: slice
    key_slots: slice
    queries: Runs | None
    """``None`` if tokens are gathered by index."""
    keys: Runs | None
    need: int
    """NO_MASK, KEY_MASK or PAIR_MASK."""
    holes: bool
    """Whether some listed query is an empty slot."""


class Limits(NamedTuple):
    """Maximum size of a call: tokens times heads, of queries and of keys, and mask entries. Masks shared by all rows do not count."""

    queries: int
    keys: int
    """Maximum keys if they are gathered."""
    viewed: int
    """Maximum keys if they are read as a view."""
    mask: int = 1 << 18


class Layout(NamedTuple):
    """Calls of one tile: one list per batch item, or one list for all. ``complete``: whether every query is in a call."""

    chunks: tuple[tuple[Chunk, ...], ...]
    complete: bool

    def of(self, item: int) -> tuple[Chunk, ...]:
        """The calls for a batch item."""
        return self.chunks[item % len(self.chunks)]

    def nbytes(self) -> int:
        """The estimated size in memory."""
        return CHUNK_BYTES * sum(map(len, self.chunks))


def layout(spec: TileSpec, heads: int, q_len: int, limits: Limits) -> Layout:
    """The layout of a tile, cached for its index tensors."""
    tensors = [x for x in (spec.queries, spec.keys, spec.bias) if x is not None]
    key = ("layout", len(tensors), spec.rules, heads, q_len, limits)
    return BYTE_CACHE.of(tensors, key, lambda: _lay_out(spec, heads, q_len, limits), Layout.nbytes)


def _lay_out(spec: TileSpec, heads: int, q_len: int, limits: Limits) -> Layout:
    query_runs, key_runs = _runs(spec.queries), _runs(spec.keys)
    needs = _needs(spec, [run is not None for run in key_runs or [None] * spec.keys.shape[2]])
    empty = (spec.queries < 0).any(-1).expand(needs.shape)
    per_head = max(needs.shape[1], spec.keys.shape[1]) > 1
    shared = needs.shape[:2] == (1, 1)
    listed = int((spec.queries >= 0).sum((-1, -2)).min())
    items = []
    for need, holes in zip(needs.tolist(), empty.tolist(), strict=True):
        signature = need[0] if shared else [max(map(max, need))] * len(need[0])
        chunks = []
        for first, count in _groups(signature, query_runs, key_runs):
            if signature[first] == NO_PAIR:
                continue
            q_run, k_run = (None if runs is None else _joined(runs, first, count) for runs in (query_runs, key_runs))
            for chunk in _cut(spec, first, count, q_run, k_run, heads, per_head, limits, signature[first]):
                rows = [row for head in need[chunk.heads if len(need) > 1 else slice(None)] for row in head[chunk.rows]]
                low, high = min(rows), max(rows)
                if high != NO_PAIR:
                    has_holes = chunk.queries is None and any(any(head[chunk.rows]) for head in holes)
                    chunks.append(chunk._replace(need=max(high, KEY_MASK) if low == NO_PAIR else high, holes=has_holes))
        items.append(tuple(chunks))
    return Layout(tuple(items), listed == q_len and not bool((needs == NO_PAIR).any()))


def _needs(spec: TileSpec, viewed: list[bool]) -> Tensor:
    """The kind of mask of every tile row, ``(B or 1, H or 1, R)``: NO_PAIR to PAIR_MASK. Views skip empty key slots without a mask."""
    queries, keys, bias, rules = spec
    real = queries >= 0
    shape = torch.broadcast_shapes(queries.shape[:3], keys.shape[:3], () if bias is None else bias.shape[:3])
    if rules == Rules() and bias is None and bool(real.all()) and bool((keys >= 0).all()):
        return torch.full(shape, NO_MASK)
    nearest = queries.masked_fill(~real, MAX_DISTANCE).amin(-1, keepdim=True) - keys
    farthest = queries.amax(-1, keepdim=True) - keys
    empty = keys < 0
    never = empty | (farthest < rules.low) | (nearest > rules.high) | ~real.any(-1, keepdim=True)
    always = ~never & (nearest >= rules.low) & (farthest <= rules.high)
    never = never | ((nearest >= rules.hidden_low) & (farthest <= rules.hidden_high))
    always = always & ((farthest < rules.hidden_low) | (nearest > rules.hidden_high))
    if bias is not None and bias.dtype == torch.bool:
        never, always = never | ~bias.any(-2), always & bias.all(-2)
    hidden = never & ~(empty & torch.tensor(viewed)[:, None])
    need = torch.where((~never & ~always).any(-1), PAIR_MASK, torch.where(hidden.any(-1), KEY_MASK, NO_MASK))
    if bias is not None and bias.dtype != torch.bool:
        need = need.clamp(min=PAIR_MASK if bias.shape[-2] > 1 else KEY_MASK)
    return need.masked_fill(never.all(-1), NO_PAIR).expand(shape)


def _runs(index: Tensor) -> list[_Row | None] | None:
    """Start, stride and size of each row of ``index (1, 1, R, T)``; ``None`` for a row that is not equally spaced.

    Returns ``None`` if ``index`` has several items or heads, or if the step between rows changes often.
    """
    if index.shape[:2] != (1, 1):
        return None
    index = index[0, 0]
    real = index >= 0
    size, slot = real.sum(-1), real.int().argmax(-1)
    start = index.gather(1, slot[:, None])[:, 0]
    following = index.gather(1, (slot + 1).clamp(max=index.shape[1] - 1)[:, None])[:, 0]
    stride = torch.where(size > 1, following - start, 1)
    place = torch.arange(index.shape[1]) - slot[:, None]
    within = (place >= 0) & (place < size[:, None])
    exact = (real == within).all(-1) & (~real | (index == start[:, None] + place * stride[:, None])).all(-1) & (stride > 0) & (size > 0)
    if int((start.diff().diff() != 0).sum()) > len(index) // 4 + 4:
        return None
    numbers = zip(exact.tolist(), start.tolist(), stride.tolist(), size.tolist(), slot.tolist(), strict=True)
    return [_Row(a, d, n, at) if good else None for good, a, d, n, at in numbers]


def _groups(needs: list[int], *sides: list[_Row | None] | None) -> Iterator[tuple[int, int]]:
    """Group neighbouring rows of equal shape, need and step: (first row, number of rows)."""

    listed = [side for side in sides if side is not None]
    shapes = [[None if row is None else row[1:4] for row in side] for side in listed]
    kinds = list(zip(needs, *shapes, strict=True))
    starts = [[0 if row is None else row.start for row in side] for side in listed]
    steps = list(zip(*([b - a for a, b in itertools.pairwise(side)] for side in starts), strict=True)) or [(0,)] * len(needs)
    first = 0
    while first < len(needs):
        last = first
        while last + 1 < len(needs) and kinds[last + 1] == kinds[first] and min(steps[last]) >= 0 and steps[last] == steps[first]:
            last += 1
        yield first, last + 1 - first
        first = last + 1


def _joined(runs: list[_Row | None], first: int, count: int) -> _Row | None:
    run, following = runs[first], runs[min(first + 1, first + count - 1)]
    return None if run is None or following is None else run._replace(step=following.start - run.start)


def _cut(
    spec: TileSpec, first: int, count: int, queries: _Row | None, keys: _Row | None, heads: int, per_head: bool,
    limits: Limits, need: int,
) -> Iterator[Chunk]:  # fmt: skip
    """Cut ``count`` equal rows into calls within ``limits``. A call takes slots of one row first.
    If there is room, it adds rows, then heads, if heads differ (``per_head``); otherwise it adds heads, then rows."""
    size = spec.queries.shape[-1] if queries is None else queries.size
    width = spec.keys.shape[-1] if keys is None else keys.size
    aligned = queries is not None and keys is not None and queries.step == keys.step
    slots = min(size, limits.queries)
    if need == PAIR_MASK:
        slots = min(slots, max(32, limits.mask // width))
    units = min(limits.queries // slots, (limits.keys if keys is None else limits.viewed) // width)
    if need == PAIR_MASK and not aligned:
        units = min(units, limits.mask // (slots * width) * (1 if per_head else heads))
    units = max(1, units)
    if per_head:
        rows_per_call = min(count, units)
        heads_per_call = min(heads, max(1, units // rows_per_call))
    else:
        heads_per_call = min(heads, units)
        rows_per_call = min(count, max(1, units // heads_per_call))
    key_slots = slice(0, width) if keys is None else slice(keys.slot, keys.slot + width)
    for low in range(0, size, slots):
        length = min(slots, size - low)
        slot = (queries.slot if queries is not None else 0) + low
        for head in range(0, heads, heads_per_call):
            for row in range(0, count, rows_per_call):
                rows = min(rows_per_call, count - row)
                yield Chunk(
                    heads=slice(head, min(heads, head + heads_per_call)),
                    rows=slice(first + row, first + row + rows),
                    slots=slice(slot, slot + length),
                    key_slots=key_slots,
                    queries=None if queries is None else queries.runs(row, rows, low, length),
                    keys=None if keys is None else keys.runs(row, rows, 0, width),
                    need=need,
                    holes=False,
                )
