"""The path ``cpu-gathered``: tiles of query-key pairs in calls of PyTorch's fused CPU kernel.

If the tokens of a tile's rows are equally spaced, with a constant step from row to row, they are read as a strided
*view*. Otherwise they are gathered by index. A call computes a few rows, so that gathered tokens stay in the CPU cache
and their memory is reused. The layout of the calls depends on the tile and on numbers such as lengths, not on q, k and
v. It is cached as long as the tile's index tensors exist.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..byte_cache import BYTE_CACHE
from ..call import GatherTile
from .kernels import MASKED, MAX_SHARED_CELLS, additive_mask, padding_of
from .softmax import Part, Runs, Scope, Side, Source, source

CHUNK_BYTES = 800
"""Estimated size of a :class:`Chunk`, in bytes."""
MAX_DISTANCE = 1 << 30
"""A number larger than any distance."""
POSITION_OFFSET = 1 << 28
"""A number larger than any position. It is added to relative positions, since a negative key is an empty slot."""
NO_PAIR, NO_MASK, KEY_MASK, PAIR_MASK = -1, 0, 1, 2
"""Which mask a tile row needs. NO_PAIR: no pair is visible, and the row is skipped. NO_MASK: every pair is visible.
KEY_MASK: all queries see the same keys. PAIR_MASK: queries see different keys."""


class Bounds(NamedTuple):
    """Pairs with ``low <= query - key <= high`` are visible, except those with
    ``hidden_low <= query - key <= hidden_high``."""

    low: int = -MAX_DISTANCE
    high: int = MAX_DISTANCE
    hidden_low: int = MAX_DISTANCE
    hidden_high: int = -MAX_DISTANCE

    @classmethod
    def of(cls, tile: GatherTile) -> Bounds:
        """The bounds of a tile's ``causal``, ``inside`` and ``outside``."""
        low, high = tile.inside or (-MAX_DISTANCE, MAX_DISTANCE)
        if tile.causal:
            low = max(low, 0)
        bounds = (low, high, *(tile.outside or (MAX_DISTANCE, -MAX_DISTANCE)))
        return cls(*(max(-MAX_DISTANCE, min(MAX_DISTANCE, x)) for x in bounds))


class TileSpec(NamedTuple):
    """One tile as the operator receives it; see :class:`hf_longattn.engines.call.GatherTile`."""

    queries: Tensor
    keys: Tensor
    bias: Tensor | None
    bounds: Bounds


class _Row(NamedTuple):
    """A tile row of equally spaced tokens: ``start + i * stride`` for i < size, in slots from ``slot`` on. The next
    row starts at ``start + step``."""

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
    keys: Runs | None
    """The tokens to view; ``None`` if tokens are gathered by index."""
    need: int
    """The mask that the call needs: NO_MASK, KEY_MASK or PAIR_MASK."""
    holes: bool
    """Whether some query slot is empty, and queries are gathered."""


class Limits(NamedTuple):
    """Maximum size of a call: tokens times heads, of queries and of keys."""

    queries: int
    keys: int
    """Maximum keys if they are gathered."""
    viewed: int
    """Maximum keys if they are read as a view."""


MAX_MASK = 1 << 18
"""Maximum mask entries of a call. Masks shared by all rows do not count."""


class Layout(NamedTuple):
    """The calls of one tile."""

    chunks: tuple[tuple[Chunk, ...], ...]
    """One list of calls per batch item, or one list for all."""
    complete: bool
    """Whether every query is in a call."""


def layout(spec: TileSpec, heads: int, q_len: int, limits: Limits) -> Layout:
    """The layout of a tile, cached as long as the tile's index tensors exist."""

    def make() -> Layout:
        query_rows, key_rows = _equal_steps(spec.queries), _equal_steps(spec.keys)
        # Mask types, and whether some query slot is empty, (B or 1, H or 1, R).
        needs = _needs(spec, [row is not None for row in key_rows])
        empty = (spec.queries < 0).any(-1).expand(needs.shape)
        per_head = max(needs.shape[1], spec.keys.shape[1]) > 1
        shared = needs.shape[:2] == (1, 1)
        listed = int((spec.queries >= 0).sum((-1, -2)).min())
        items = []
        for need, holes in zip(needs.tolist(), empty.tolist(), strict=True):
            # Calls have rows with equal masks. If heads or items differ, all rows count as those with the most mask.
            row_needs = need[0]
            if not shared:
                row_needs = [max(map(max, need))] * len(need[0])
            chunks = []
            for first, count, (q_row, k_row) in _groups(row_needs, query_rows, key_rows):
                for chunk in _cut(spec, first, count, q_row, k_row, heads, per_head, limits, row_needs[first]):
                    chunk_heads = need[chunk.heads] if len(need) > 1 else need
                    chunk_needs = [row_need for head in chunk_heads for row_need in head[chunk.rows]]
                    highest = max(chunk_needs)
                    if highest == NO_PAIR:
                        continue
                    if NO_PAIR in chunk_needs:  # these rows must be hidden
                        highest = max(highest, KEY_MASK)
                    has_holes = chunk.queries is None and any(any(head[chunk.rows]) for head in holes)
                    chunks.append(chunk._replace(need=highest, holes=has_holes))
            items.append(tuple(chunks))
        return Layout(tuple(items), listed == q_len and not bool((needs == NO_PAIR).any()))

    tensors = [x for x in (spec.queries, spec.keys, spec.bias) if x is not None]
    key = ("layout", len(tensors), spec.bounds, heads, q_len, limits)
    return BYTE_CACHE.of(tensors, key, make, lambda made: CHUNK_BYTES * sum(map(len, made.chunks)))


def _needs(spec: TileSpec, viewed: list[bool]) -> Tensor:
    """The mask type of every tile row, ``(B or 1, H or 1, R)``: NO_PAIR to PAIR_MASK.

    viewed: for each row, whether its keys are read as a view. Empty key slots then need no mask.
    """
    queries, keys, bias, bounds = spec
    real = queries >= 0
    shape = torch.broadcast_shapes(queries.shape[:3], keys.shape[:3])
    if bias is not None:
        shape = torch.broadcast_shapes(shape, bias.shape[:3])
    if bounds == Bounds() and bias is None and bool(real.all()) and bool((keys >= 0).all()):
        return torch.full(shape, NO_MASK)
    # For each key of a row, (…, R, Tk): the range of distances from the row's queries, and whether it is visible to
    # none or to all of them.
    nearest = queries.masked_fill(~real, MAX_DISTANCE).amin(-1, keepdim=True) - keys
    farthest = queries.amax(-1, keepdim=True) - keys
    empty = keys < 0
    never = empty | (farthest < bounds.low) | (nearest > bounds.high) | ~real.any(-1, keepdim=True)
    always = ~never & (nearest >= bounds.low) & (farthest <= bounds.high)
    never = never | ((nearest >= bounds.hidden_low) & (farthest <= bounds.hidden_high))
    always = always & ((farthest < bounds.hidden_low) | (nearest > bounds.hidden_high))
    if bias is not None and bias.dtype == torch.bool:
        never = never | ~bias.any(-2)
        always = always & bias.all(-2)
    hidden = never & ~(empty & torch.tensor(viewed)[:, None])
    need = torch.where((~never & ~always).any(-1), PAIR_MASK, torch.where(hidden.any(-1), KEY_MASK, NO_MASK))
    if bias is not None and bias.dtype != torch.bool:
        need = need.clamp(min=PAIR_MASK if bias.shape[-2] > 1 else KEY_MASK)
    return need.masked_fill(never.all(-1), NO_PAIR).expand(shape)


def _equal_steps(index: Tensor) -> list[_Row | None]:
    """The rows of ``index (B, H, R, T)`` whose tokens are equally spaced; ``None`` in place of other rows.

    Every row is ``None`` if there are several items or heads, or if the step between rows changes often.
    """
    if index.shape[:2] != (1, 1):
        return [None] * index.shape[2]
    # What each row would be if its tokens were equally spaced: their number, and the slot and position of the first.
    index = index[0, 0]
    real = index >= 0
    size, slot = real.sum(-1), real.int().argmax(-1)
    start = index.gather(1, slot[:, None])[:, 0]
    second = index.gather(1, (slot + 1).clamp(max=index.shape[1] - 1)[:, None])[:, 0]
    stride = torch.where(size > 1, second - start, 1)
    # Whether they are.
    nth = torch.arange(index.shape[1]) - slot[:, None]
    within = (nth >= 0) & (nth < size[:, None])
    exact = (
        (real == within).all(-1)
        & (~real | (index == start[:, None] + nth * stride[:, None])).all(-1)
        & (stride > 0)
        & (size > 0)
    )
    if int((start.diff().diff() != 0).sum()) > len(index) // 4 + 4:
        return [None] * len(index)
    numbers = zip(start.tolist(), stride.tolist(), size.tolist(), slot.tolist(), strict=True)
    return [_Row(*row) if is_exact else None for is_exact, row in zip(exact.tolist(), numbers, strict=True)]


def _groups(needs: list[int], *sides: list[_Row | None]) -> Iterator[tuple[int, int, list[_Row | None]]]:
    """Group neighbouring rows of equal shape, mask type and step.

    Args:
        needs: the mask type of each row.
        sides: the rows of queries, and the rows of keys, from :func:`_equal_steps`.
    Yields:
        The index of a group's first row, the number of rows, and for queries and keys the first :class:`_Row` with the
        step of the group, or ``None`` if the rows are not equally spaced.
    """
    shapes = [[None if row is None else row[1:4] for row in side] for side in sides]
    looks = list(zip(needs, *shapes, strict=True))  # equal for rows that may be in one group
    starts = [[0 if row is None else row.start for row in side] for side in sides]
    steps = list(zip(*([b - a for a, b in itertools.pairwise(side)] for side in starts), strict=True))
    first = 0
    while first < len(needs):
        last = first
        while (
            last + 1 < len(needs)
            and looks[last + 1] == looks[first]
            and min(steps[last]) >= 0
            and steps[last] == steps[first]
        ):
            last += 1
        first_rows: list[_Row | None] = []
        for side in sides:
            row, second = side[first], side[min(first + 1, last)]
            if row is not None and second is not None:
                row = row._replace(step=second.start - row.start)
            first_rows.append(row)
        yield first, last + 1 - first, first_rows
        first = last + 1


def _cut(
    spec: TileSpec,
    first: int,
    count: int,
    queries: _Row | None,
    keys: _Row | None,
    heads: int,
    per_head: bool,
    limits: Limits,
    need: int,
) -> Iterator[Chunk]:
    """Cut a group of ``count`` equal rows, from row ``first`` on, into calls within ``limits``.

    A call is filled with query slots of one row first. If heads differ (``per_head``), rows are added next, then
    heads. Otherwise heads are added next, then rows.

    Args:
        queries, keys: the first row of the group, see :func:`_groups`.
        need: the mask type of all rows.
    """
    # Queries and keys of a row, and the first slots in use.
    size, first_slot = spec.queries.shape[-1], 0
    if queries is not None:
        size, first_slot = queries.size, queries.slot
    width, most_keys, key_slots = spec.keys.shape[-1], limits.keys, slice(None)
    if keys is not None:
        width, most_keys, key_slots = keys.size, limits.viewed, slice(keys.slot, keys.slot + keys.size)
    # A piece is ``slots`` query slots of one row and one head. Find out how many pieces fit into a call.
    aligned = queries is not None and keys is not None and queries.step == keys.step
    slots = min(size, limits.queries)
    if need == PAIR_MASK:
        slots = min(slots, max(32, MAX_MASK // width))
    pieces = min(limits.queries // slots, most_keys // width)
    if need == PAIR_MASK and not aligned:
        masks = MAX_MASK // (slots * width)
        if not per_head:  # one mask serves all heads
            masks *= heads
        pieces = min(pieces, masks)
    pieces = max(1, pieces)
    if per_head:
        rows_per_call = min(count, pieces)
        heads_per_call = min(heads, max(1, pieces // rows_per_call))
    else:
        heads_per_call = min(heads, pieces)
        rows_per_call = min(count, max(1, pieces // heads_per_call))
    for low in range(0, size, slots):
        length = min(slots, size - low)
        slot = first_slot + low
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


FORWARD_LIMITS = Limits(queries=24576, keys=4096, viewed=1 << 40)
BACKWARD_LIMITS = Limits(queries=3072, keys=4096, viewed=24576)
"""Size limits of one kernel call in the forward and in the backward pass. Within them, results fit into the CPU cache,
and the next call reuses their memory."""


class TokenTable:
    """``x (B, H, N)`` or ``(B, H, N, D)``, and its view as a table ``(rows, …)`` for index_select. Gathered tokens
    reuse one buffer.

    The token at (b, h, n) is the row ``(b, h, n) · steps`` of the table.
    """

    def __init__(self, name: str, x: Tensor) -> None:
        self.name, self.width, self.buffer = name, math.prod(x.shape[3:]), x.new_empty(0)
        # A view needs strides that are whole numbers of tokens.
        uneven = any(n > 1 and stride % self.width for n, stride in zip(x.shape[:3], x.stride(), strict=False))
        if uneven or (x.dim() == 4 and x.stride(3) != 1):
            x = x.contiguous()
        self.values = x
        self.steps = tuple(stride // self.width for stride in x.stride()[:3])
        rows = 1 + sum((n - 1) * step for n, step in zip(x.shape[:3], self.steps, strict=True))
        self.rows = x.as_strided((rows, *x.shape[3:]), (self.width, 1)[: x.dim() - 2], x.storage_offset())


@dataclasses.dataclass
class _Viewed(Side):
    """Runs of tokens of one batch item, for some heads."""

    at: tuple[slice, slice]
    """Slices of the batch axis and of the heads."""
    runs: Runs

    def of(self, table: TokenTable) -> Tensor:
        return self.runs.of(table.values[self.at])

    def add(self, table: TokenTable, values: Tensor) -> None:
        self.runs.add(table.values[self.at], values)

    def positions(self) -> Tensor:
        """The tokens' positions, ``(rows, 1, T)`` int32."""
        runs = self.runs
        first = torch.arange(runs.rows, dtype=torch.int32)[:, None, None] * runs.step
        return first + (torch.arange(runs.size, dtype=torch.int32) * runs.stride + runs.start)


@dataclasses.dataclass
class _Gathered(Side):
    """Tokens at the positions ``listed (rows, T, heads or 1)`` of one batch item, for some heads. Empty slots are
    -1."""

    item: int
    heads: slice
    listed: Tensor
    holes: bool
    indices: dict[tuple[int, ...], Tensor] = dataclasses.field(default_factory=dict)
    """Steps of a :class:`TokenTable` -> result of :meth:`index`."""

    copies: ClassVar[bool] = True

    def index(self, table: TokenTable) -> Tensor:
        """The rows of ``table`` with these tokens, ``(rows · T · heads,)``. Empty slots give an arbitrary row."""
        if table.steps not in self.indices:
            by_item, by_head, by_token = table.steps
            offset = torch.arange(self.heads.start, self.heads.stop) * by_head + self.item * by_item
            self.indices[table.steps] = (self.listed.clamp(min=0) * by_token + offset).flatten()
        return self.indices[table.steps]

    def of(self, table: TokenTable) -> Tensor:
        """The listed tokens of ``table``, ``(rows, heads, T, …)``.

        An empty slot holds an arbitrary token. In a table of log-sum-exps it holds 1e30, so that its weights are 0.
        """
        index = self.index(table)
        size = len(index) * table.width
        if table.buffer.numel() < size:
            table.buffer = table.values.new_empty(size)
        flat = table.buffer[:size].view(len(index), *table.values.shape[3:])
        torch.index_select(table.rows, 0, index, out=flat)
        tokens = flat.view(*self.listed.shape[:2], self.heads.stop - self.heads.start, *table.values.shape[3:])
        if self.holes and table.name == "lse":
            tokens.masked_fill_(self.listed < 0, -MASKED)  # MASKED is negative
        return tokens.transpose(1, 2)

    def put(self, table: TokenTable, values: Tensor) -> None:
        index = self.index(table)
        values = values.transpose(1, 2).reshape(-1, *table.values.shape[3:])
        if self.holes:
            filled = (self.listed >= 0).expand(-1, -1, self.heads.stop - self.heads.start).flatten()
            index, values = index[filled], values[filled]
        table.rows.index_copy_(0, index, values)

    def add(self, table: TokenTable, values: Tensor) -> None:
        values = values.to(table.values.dtype).transpose(1, 2).reshape(-1, table.width)
        table.rows.index_add_(0, self.index(table), values)

    def positions(self) -> Tensor:
        """The tokens' positions, ``(rows, heads or 1, T)`` int32; -1 for an empty slot."""
        return self.listed.transpose(1, 2).to(torch.int32)


class _Tile(Scope):
    """One tile, with all batch items. ``tables``: name of a tensor -> its token table, for all tiles of a call."""

    def __init__(self, tables: dict[str, TokenTable], parts: Iterator[Part]) -> None:
        super().__init__(parts)
        self.tables = tables

    def read(self, name: str, x: Tensor) -> TokenTable:
        if name not in self.tables:
            self.tables[name] = TokenTable(name, x)
        return self.tables[name]

    into = read


@source
class Tiles(Source):
    """Attention over the union of the tiles' pairs.

    - fixed: key mask ``(B, Nk)`` bool, or None; then the queries of each tile, its keys, and its bias or None, as in
      :class:`hf_longattn.engines.call.GatherTile`.
    - numbers: the four numbers of the :class:`Bounds` of each tile.
    """

    name = "tiles"
    may_see_nothing = True

    def read_arguments(self) -> None:
        self.key_mask, *lists = self.fixed
        bounds = [Bounds(*self.numbers[at : at + 4]) for at in range(0, len(self.numbers), 4)]
        tiles = zip(lists[::3], lists[1::3], lists[2::3], bounds, strict=True)
        self.tiles = [TileSpec(*tile) for tile in tiles]  # type: ignore[arg-type]

    def prepare(self, out: Tensor, lse: Tensor) -> None:
        # The first tile overwrites results, and the others merge with them.
        first = layout(self.tiles[0], self.q.shape[1], self.q.shape[2], self.limits(backward=False))
        if self.key_mask is not None or not first.complete:
            out.zero_()
            lse.fill_(MASKED)

    def sums(self) -> list[Tensor]:
        """Sums of gradients, stored head by head if keys differ by head. Random additions then touch nearby memory."""
        if any(tile.keys.shape[1] > 1 for tile in self.tiles):
            return [torch.zeros(x.shape, dtype=self.dtype) for x in (self.q, self.k, self.v)]
        return super().sums()

    def scopes(self, backward: bool) -> Iterator[Scope]:
        limits, tables = self.limits(backward), dict[str, TokenTable]()
        for number, tile in enumerate(self.tiles):
            yield _Tile(tables, self.parts(tile, limits, merges=number > 0))

    def limits(self, backward: bool) -> Limits:
        """The limits of a pass. With dropout, both passes have the same parts, which draw the same weights."""
        return BACKWARD_LIMITS if backward or self.dropout else FORWARD_LIMITS

    def parts(self, tile: TileSpec, limits: Limits, merges: bool) -> Iterator[Part]:
        """Yield the parts of one tile. Parts whose keys are all padding are skipped."""
        chunks = layout(tile, self.q.shape[1], self.q.shape[2], limits).chunks
        number = 0
        for item in range(len(self.q)):
            padding = padding_of(self.key_mask, item, self.dtype)
            for chunk in chunks[item % len(chunks)]:
                queries = side(tile.queries, item, chunk, chunk.slots, chunk.queries)
                keys = side(tile.keys, item, chunk, slice(None), chunk.keys)
                hidden = None
                if padding is not None:
                    hidden = padding[keys.positions().clamp(min=0)][:, :, None]
                    if not bool(hidden.any()):
                        hidden = None
                    elif bool(hidden.all()):
                        continue
                mask = chunk_mask(tile, item, chunk, queries, keys, self.dtype)
                if hidden is not None:
                    mask = hidden if mask is None else mask + hidden
                yield Part(queries, keys, mask, (number,), merges)
                number += 1


def side(index: Tensor, item: int, chunk: Chunk, slots: slice, runs: Runs | None) -> _Viewed | _Gathered:
    """The queries or the keys of a chunk.

    Args:
        index: the tile's ``queries`` or ``keys``.
        slots: the slots to gather, if there are no ``runs`` to view.
    """
    if runs is not None:
        return _Viewed((slice(item, item + 1), chunk.heads), runs)
    heads = chunk.heads if index.shape[1] > 1 else slice(None)
    listed = index[item % index.shape[0], heads, chunk.rows, slots].permute(1, 2, 0)
    return _Gathered(item, chunk.heads, listed, chunk.holes)


def chunk_mask(
    spec: TileSpec,
    item: int,
    chunk: Chunk,
    q_side: _Viewed | _Gathered,
    k_side: _Viewed | _Gathered,
    dtype: torch.dtype,
) -> Tensor | None:
    """The additive mask of a call, broadcastable to ``(rows, heads, Tq, Tk)``; ``None`` if every pair is visible.

    q_side, k_side: the call's queries and keys, from :func:`side`.
    """
    if chunk.need == NO_MASK:
        return None
    # Rows with equal distances share a cached mask.
    q_run, k_run = chunk.queries, chunk.keys
    one_for_all_queries = chunk.need == KEY_MASK
    if q_run is not None and k_run is not None and spec.bias is None:
        q_size = 1 if one_for_all_queries else q_run.size
        if (k_run.rows == 1 or q_run.step == k_run.step) and q_size * k_run.size <= MAX_SHARED_CELLS:
            return relative_mask(
                q_run.start - k_run.start, q_size, q_run.stride, k_run.size, k_run.stride, spec.bounds, dtype
            )
    queries, keys = q_side.positions(), k_side.positions()
    if one_for_all_queries:  # amax finds a query that is not an empty slot (-1)
        queries = queries.amax(-1, keepdim=True)
    seen = _seen(queries, keys, spec.bounds)
    if spec.bias is None:
        return additive_mask(~seen, dtype)

    # The bias of the chunk, (rows or 1, heads or 1, Tq or 1, Tk)
    bias = spec.bias[item % len(spec.bias), ..., chunk.key_slots]
    if bias.shape[0] > 1:
        bias = bias[chunk.heads]
    if bias.shape[1] > 1:
        bias = bias[:, chunk.rows]
    if bias.shape[2] > 1:
        bias = bias[:, :, slice(0, 1) if one_for_all_queries else chunk.slots]
    bias = bias.transpose(0, 1)
    if bias.dtype == torch.bool:
        return additive_mask(~(seen & bias), dtype)
    return bias.to(dtype).clamp(min=MASKED).masked_fill(~seen, MASKED).contiguous()


def relative_mask(
    shift: int, q_size: int, q_stride: int, k_size: int, k_stride: int, bounds: Bounds, dtype: torch.dtype
) -> Tensor:
    """The additive mask ``(1, 1, Tq, Tk)`` of rows whose first query is ``shift`` positions after the first key. It is
    cached, and must not be modified."""

    def positions(first: int, size: int, stride: int) -> Tensor:
        return torch.arange(first, first + size * stride, stride, dtype=torch.int32)[None, None]

    def make() -> Tensor:
        queries = positions(shift + POSITION_OFFSET, q_size, q_stride)
        keys = positions(POSITION_OFFSET, k_size, k_stride)
        return additive_mask(~_seen(queries, keys, bounds), dtype)

    return BYTE_CACHE.get(("relative mask", shift, q_size, q_stride, k_size, k_stride, bounds, dtype), make)


def _seen(queries: Tensor, keys: Tensor, bounds: Bounds) -> Tensor:
    """Which pairs of positions ``queries (…, Tq)`` and ``keys (…, Tk)`` are visible, ``(…, Tq, Tk)`` bool. A key slot
    with -1 is empty."""
    distance = queries[..., :, None] - keys[..., None, :]
    seen = (distance >= bounds.low) & (keys >= 0)[..., None, :]
    seen &= distance <= bounds.high
    if bounds.hidden_low <= bounds.hidden_high:
        seen &= (distance < bounds.hidden_low) | (distance > bounds.hidden_high)
    return seen
