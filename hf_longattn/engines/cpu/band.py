"""The path ``cpu-band``: a band and global tokens by PyTorch's fused kernel for the CPU.

The queries are cut into blocks. The keys of one block are one contiguous slice, so the slices of all blocks are a strided *view* of the
keys (``as_strided``, no copy), and one call of the kernel runs all of them. Global columns and rows are further calls on gathered tokens.

The plan (:func:`band_plan`) has blocks of the cheapest size, by the :class:`Costs` of calls. Small blocks compute few pairs outside the
band. Large blocks need fewer calls and less time per pair. Where the kernel first lays keys out for the processor's tiles (AMX), a large
block lays each key out for more queries. The largest block has all queries: the dense kernel with the band as its mask. It is the fastest
up to about the length that the band covers, and needs no further calls for global tokens.

The plan depends only on lengths, band, dtype, processor, and whether there are global tokens. So a sequence has the same bits in every
batch and with every number of heads.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...naming import OPERATORS
from ..common.batch import all_finite
from ..common.byte_cache import BYTE_CACHE
from ..common.call import Pattern
from ..common.context import DispatchContext
from ..common.derivatives import first_derivatives_only, one_gradient_at_a_time
from ..common.score_terms import DistanceBias, PlaceTerm
from .dense_mask import visible_mask
from .dropout import Dropout, drops_in_tiles, part_backward, part_forward
from .flash import (
    MAX_PLAIN_KEYS,
    Gradients,
    additive_mask,
    empty_results,
    few_keys,
    few_keys_backward,
    like_bias,
    mask_dtype,
    merge_into,
    score_gradient,
    token_major,
)
from .flash import (
    why_not as why_no_kernel,
)
from .onednn import has_amx

KERNEL_QUERIES, KERNEL_KEYS = (32, 64, 256), 512
"""Tile sizes of PyTorch's CPU flash kernel. Query rows in blocks of up to 191, up to 767 and more; then keys."""
MAX_BLOCK_QUERIES = 2048
"""Maximum queries in one block, which bounds its mask."""
COLUMN_BLOCK, COLUMN_CALL_QUERIES = 32, 512
"""Query rows per block in the search for rows that need global columns. Then the maximum rows per call."""

DROPOUT_BLOCK = 64
"""Queries per block with dropout. Forward and backward must draw weights in the same blocks."""

Mask = TypeVar("Mask", Tensor, Tensor | None)
Place = tuple[int, int, int]
"""``(item, kind, number)`` of a call. The kind is BAND, COLUMNS or ROWS; ``number`` counts the calls of that kind."""
BAND, COLUMNS, ROWS = range(3)


def why_not(context: DispatchContext) -> str | None:
    """Why this path does not run, as a clause. ``None`` if it may run."""
    if (why := why_no_kernel(context, drops=drops_in_tiles(context))) is not None:
        return why
    if "cpu-band" in context.call.term.engines:
        return None
    return "the fused kernel adds no score term other than a bias by distance or place"


def plan_of(context: DispatchContext) -> Plan:
    """The cheapest plan for the call's band."""
    assert context.dtype is not None
    band, kv_len = context.band, context.kv_len
    sizes = (context.q_len, kv_len, kv_len - context.q_len, min(band.left, kv_len), min(band.right, kv_len))
    return band_plan(*sizes, context.dtype, torch.get_num_threads(), tokens=context.call.global_mask is not None)


class Group(NamedTuple):
    """Equal blocks. Block i has ``block`` queries from ``first + i * block`` on, and ``width`` keys from ``start + i * step`` on."""

    first: int
    blocks: int
    block: int
    start: int
    step: int
    width: int

    def queries(self, x: Tensor) -> Tensor:
        """The blocks of ``x (B, H, Nq, …)``, a view ``(blocks, H, block, …)`` of one sequence, or ``(B, H, block, …)`` for one block."""
        return self._slices(x, self.first, self.block, self.block)

    def keys(self, x: Tensor) -> Tensor:
        """The key slices of ``x (B, H, Nk, …)``, as views like those of :meth:`queries`."""
        return self._slices(x, self.start, self.width, self.step)

    def add_to_keys(self, total: Tensor, parts: Tensor) -> None:
        """Add ``parts``, shaped as :meth:`keys`, to ``total (B, H, Nk, D)``. Pieces of one step never overlap."""
        for at in range(0, self.width, self.step):
            size = min(self.step, self.width - at)
            self._slices(total, self.start + at, size, self.step).add_(parts[:, :, at : at + size])

    def _slices(self, x: Tensor, first: int, size: int, step: int) -> Tensor:
        """Slice i starts at ``first + i * step``; slices may overlap."""
        if self.blocks == 1:
            return x.narrow(2, first, size)
        _, heads, tokens, *inner = x.stride()
        shape = (self.blocks, x.shape[1], size, *x.shape[3:])
        return x.as_strided(shape, (step * tokens, heads, tokens, *inner), x.storage_offset() + first * tokens)

    def parts(self, count: int) -> Iterator[Group]:
        """Its blocks in groups of at most ``count``."""
        for number in range(0, self.blocks, count):
            first, start = self.first + number * self.block, self.start + number * self.step
            yield self._replace(first=first, start=start, blocks=min(count, self.blocks - number))

    def sees_all(self, shift: int, left: int, right: int) -> bool:
        """Whether the band covers every pair of a block. Its first query is at index ``shift`` of its key slice."""
        return shift + self.block - 1 <= left and self.width - 1 - shift <= right


def groups(q_len: int, kv_len: int, shift: int, left: int, right: int, block: int) -> Iterator[Group]:
    """Cover all queries: inner blocks in one group, edges block by block. Slices of inner blocks lie within the sequence.

    Args:
        shift: position of the first query within the keys.
    """
    first = -(-max(0, left - shift) // block)
    last = max(first, min(q_len, kv_len - right - shift) // block)
    if last > first:
        yield Group(first * block, last - first, block, first * block + shift - left, block, block + left + right)
    edges = [(0, first * block), (last * block, q_len)] if last > first else [(0, q_len)]
    for start, stop in edges:
        for row in range(start, stop, block):
            size = min(block, stop - row)
            from_key = max(0, row + shift - left)
            width = min(kv_len, row + size + shift + right) - from_key
            yield Group(row, 1, size, from_key, width, width)


class Costs(NamedTuple):
    """Costs of calls, in nanoseconds per head, with 12 heads of width 64."""

    sizes: tuple[int, ...]
    """Block sizes to choose from, in queries, besides one block of all queries."""
    pair: tuple[float, float, float]
    """One pair without a mask, for each block size of :data:`KERNEL_QUERIES`."""
    masked: float
    """Extra cost of a pair with a mask."""
    key: float
    """One key of a block: layout for AMX tiles or, backward, summing its gradients."""
    call: float
    """One call of the kernel."""
    tokens: float
    """All additional calls for global tokens together."""
    queries: int
    """Maximum queries per call, so that its results stay in the cache."""

    def of(self, group: Group, shift: int, left: int, right: int) -> float:
        """The cost of a group of blocks. A block's first query is at index ``shift`` of its key slice."""
        size = (group.block >= 192) + (group.block >= 768)
        pair = self.pair[size] + (0.0 if group.sees_all(shift, left, right) else self.masked)
        calls = -(-group.blocks // max(1, self.queries // group.block))
        pairs = group.block * group.width
        if right == 0 and group.block == group.width:  # all queries and keys: the kernel skips keys after a query
            pairs = sum(
                min(KERNEL_QUERIES[size], group.block - row)
                * min(group.width, -(-(row + KERNEL_QUERIES[size]) // KERNEL_KEYS) * KERNEL_KEYS)
                for row in range(0, group.block, KERNEL_QUERIES[size])
            )
        return calls * self.call + group.blocks * (pairs * pair + group.width * self.key)


FP32 = Costs((32, 64), (3.4, 3.2, 3.1), 0.2, 0.0, 3_500.0, 50_000.0, 2048)
BF16 = Costs((32, 64), (3.55, 3.2, 3.15), 0.2, 0.0, 5_800.0, 100_000.0, 2048)
BF16_AMX = Costs((32, 192, 256, 384, 768), (3.3, 1.1, 0.8), 0.25, 110.0, 5_000.0, 80_000.0, 384)
FP32_BACKWARD = Costs((64, 192), (8.0, 8.0, 7.6), 0.3, 100.0, 8_000.0, 200_000.0, 256)
BF16_BACKWARD = Costs((64, 192, 256), (8.0, 7.0, 5.4), 0.3, 250.0, 8_000.0, 200_000.0, 256)
"""Costs measured on an AMD EPYC of 2024 (AVX-512 without AMX), one thread's processor time. Windows had 512 tokens and sequences 256
to 2,048. Costs with AMX are estimated from whole models on an Intel Xeon of 2023."""


def costs_of(dtype: torch.dtype, backward: bool, threads: int) -> Costs:
    """The costs on this processor."""
    half = dtype.itemsize < 4
    if backward:
        return BF16_BACKWARD if half else FP32_BACKWARD
    if dtype == torch.bfloat16 and has_amx():
        return BF16_AMX._replace(queries=BF16_AMX.queries * threads)  # each thread's share stays in its cache
    return BF16 if half else FP32


class Plan(NamedTuple):
    """The blocks of all queries of a sequence, and the queries per call."""

    groups: tuple[Group, ...]
    block: int
    """Queries per block. The last block may have fewer."""
    queries: int
    """Maximum queries per call."""

    dense: bool
    """Whether one block has all queries and keys. Its mask then also holds the global tokens."""


@functools.lru_cache(4096)
def band_plan(
    q_len: int, kv_len: int, shift: int, left: int, right: int, dtype: torch.dtype, threads: int, *, backward: bool = False,
    tokens: bool = False, block: int | None = None,
) -> Plan:  # fmt: skip
    """The cheapest plan for queries that see ``left`` keys back and ``right`` ahead. The first query is at key position ``shift``.

    Args:
        threads: number of threads of the process.
        backward: whether the plan is for the backward pass.
        tokens: whether there are global tokens.
        block: a block size to use instead of the cheapest.
    """
    costs = costs_of(dtype, backward, threads)
    sizes = [block] if block else [*(size for size in costs.sizes if size < q_len), *([q_len] if q_len <= MAX_BLOCK_QUERIES else [])]
    plans = {}
    for size in sizes:
        blocks = tuple(groups(q_len, kv_len, shift, left, right, size))
        plan = Plan(blocks, size, costs.queries, dense=(blocks[0].block, blocks[0].width) == (q_len, kv_len))
        plans[plan] = sum(costs.of(group, group.first + shift - group.start, left, right) for group in blocks)
        plans[plan] += costs.tokens * (tokens and not plan.dense)
    return min(plans, key=plans.__getitem__)


def band_mask(block: int, left: int, right: int, dtype: torch.dtype) -> Tensor:
    """Additive band mask ``(1, 1, block, block + left + right)``. The block's first query is at index ``left`` of its keys.

    Slices at the edges have many widths. Their masks are views of this one. Shared, so read-only.
    """

    def make() -> Tensor:
        distance = torch.arange(block)[:, None] + left - torch.arange(block + left + right)
        return additive_mask((distance > left) | (distance < -right), dtype)[None, None]

    return BYTE_CACHE.get(("band", block, left, right, dtype), make)


def block_mask(group: Group, shift: int, left: int, right: int, block: int, dtype: torch.dtype) -> Tensor | None:
    """The part of :func:`band_mask` for a group's blocks, ``(1, 1, size, width)``. ``None`` where it hides nothing. Blocks have up to
    ``block`` queries, and the first of all queries is at key position ``shift``."""
    first = group.first + shift - group.start
    if group.sees_all(first, left, right):
        return None
    return band_mask(block, left, right, dtype)[:, :, : group.block, left - first : left - first + group.width]


class BandSettings(NamedTuple):
    """Settings of one call: mask dtype, bias, visible keys, factor on q·k and dropout."""

    dtype: torch.dtype
    bias: DistanceBias | None
    left: int
    right: int
    causal: bool
    global_rows: bool
    scale: float
    dropout: Dropout | None = None

    @classmethod
    def of(cls, dtype: torch.dtype, bias: Tensor | None, ahead: int, *settings: Any) -> BandSettings:
        return cls(dtype, None if bias is None else DistanceBias(bias.to(dtype), ahead), *settings)

    def part(self, place: Place, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp of one call."""
        return part_forward(self.dropout, place, q, k, v, mask=mask, scale=self.scale, causal=causal)

    @property
    def pattern(self) -> Pattern:
        return Pattern(self.left, self.right, self.causal, True, self.global_rows)

    def add_bias(self, mask: Mask, distance: Tensor | None) -> Mask | Tensor:
        """``mask`` plus the bias at these query-key distances ``(rows, columns)``."""
        if self.bias is None or distance is None:
            return mask
        bias = self.bias.over(distance)[None]
        return bias if mask is None else mask + bias


class Item(NamedTuple):
    """Batch rows that run together: all rows, or one row without its outer padding. Tensors are ``(b, H, tokens, …)``."""

    by_query: tuple[slice, slice, slice]
    """Index of its queries in the batch's tensors."""
    by_key: tuple[slice, slice, slice]
    shift: int
    """Position of the first query among the item's keys."""
    hole: Tensor | None
    """Additive mask ``(1, 1, Nk)`` of padding between the item's real keys, if any."""
    globals: Tensor | None
    """Positions of the global tokens among the item's keys, if any."""
    q: Tensor
    k: Tensor
    v: Tensor
    term: PlaceTerm | None = None
    """The score term of the places of the item's keys, if any."""

    @property
    def q_len(self) -> int:
        return self.q.shape[2]

    @property
    def kv_len(self) -> int:
        return self.k.shape[2]

    def causal(self, band: BandSettings, plan: Plan) -> bool:
        """Whether the kernel may skip keys after a query, besides applying the mask."""
        return plan.dense and band.causal and self.shift == 0

    def padding_rows(self, hole: Tensor) -> Tensor:
        """Which queries are padding between real tokens, ``(1, 1, Nq, 1)``."""
        return (hole[..., self.shift : self.shift + self.q_len] != 0)[..., None]

    def add_term(self, mask: Tensor | None, rows: Any, columns: Any) -> Tensor | None:
        """``mask`` plus the place term for queries at index ``rows`` and keys at index ``columns``."""
        if self.term is None:
            return mask
        places = self.term.places
        added = self.term.over(places[:, self.shift :][:, rows], places[:, columns])
        return added if mask is None else added.add_(mask)

    def global_rows(self) -> Tensor:
        """Indices of the queries that are global tokens."""
        assert self.globals is not None
        rows = self.globals - self.shift
        return rows[(rows >= 0) & (rows < self.q_len)]


def items(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, global_mask: Tensor | None, in_blocks: Callable[[Item], bool],
    term: PlaceTerm | None = None,
) -> Iterator[Item]:  # fmt: skip
    """Split the batch into items without outer padding. Rows without a real token are skipped, and their outputs are zeros.

    Args:
        in_blocks: whether an item's queries are cut into blocks. If so, each row of the batch is an item.
        term: a :class:`PlaceTerm` with the coordinates of all keys.
    """
    everything, kv_len, earlier = slice(None), k.shape[2], k.shape[2] - q.shape[2]
    if key_mask is None and global_mask is None:
        index = (everything, everything, everything)
        item = Item(by_query=index, by_key=index, shift=earlier, hole=None, globals=None, q=q, k=k, v=v, term=term)
        if len(q) == 1 or not in_blocks(item):
            yield item
            return
    for row in range(q.shape[0]):
        start, stop, hole, at = 0, kv_len, None, slice(row, row + 1)
        if key_mask is not None:
            real = key_mask[row].nonzero()
            if not len(real):
                continue
            start, stop = int(real[0]), int(real[-1]) + 1
            if len(real) != stop - start:
                hole = additive_mask(~key_mask[row, start:stop], mask_dtype(q))[None, None]
        first = max(start, earlier)
        if first >= stop:
            continue
        chosen = None if global_mask is None else global_mask[row, start:stop].nonzero()[:, 0]
        columns = chosen if chosen is not None and len(chosen) else None
        by_query, by_key = (at, everything, slice(first - earlier, stop - earlier)), (at, everything, slice(start, stop))
        of_row = None if term is None else term.of_sequence(row, start, stop)
        queries, keys, values = q[by_query], k[by_key], v[by_key]
        if hole is not None and not all_finite((queries, keys, values)):  # 0 · NaN is NaN
            padding = hole[0, 0, :, None] != 0
            queries = queries.masked_fill(padding[first - start :], 0.0)
            keys, values = keys.masked_fill(padding, 0.0), values.masked_fill(padding, 0.0)
        yield Item(by_query, by_key, first - start, hole, columns, queries, keys, values, of_row)


BandCall = tuple[Group, Tensor | None, Tensor | None]
"""The blocks of one kernel call, their mask, and, for a bias, their distances."""


def _band_calls(item: Item, band: BandSettings, plan: Plan) -> Iterable[BandCall]:
    """The kernel calls of the band."""
    if plan.dense:
        visible = visible_mask(item.q_len, item.kv_len, item.shift, band.pattern, item.globals, band.dtype)
        calls: Sequence[BandCall] = [(plan.groups[0], visible, None)]
    else:
        sizes = (item.q_len, item.kv_len, item.shift, band.left, band.right)
        key = ("calls of a band", *sizes, plan.block, plan.queries, band.dtype)
        calls = BYTE_CACHE.get(key, lambda: list(_unbiased_calls(plan, item.shift, band)))
    if item.term is not None:
        return _placed_calls(item, item.term, calls)
    if item.hole is None and band.bias is None:
        return calls
    biased: dict[tuple[int, int, int], tuple[Tensor | None, Tensor | None]] = {}
    changed: list[BandCall] = []
    for group, unbiased, _ in calls:
        first = group.first + item.shift - group.start
        shape = (group.block, group.width, first)
        if shape not in biased:
            distance = None if band.bias is None else torch.arange(group.block)[:, None] + first - torch.arange(group.width)[None, :]
            biased[shape] = band.add_bias(unbiased, distance), distance
        mask, distance = biased[shape]
        hole = None if item.hole is None else group.keys(item.hole)[:, :, None]
        changed.append((group, mask if hole is None else hole if mask is None else mask + hole, distance))
    return changed


def _placed_calls(item: Item, term: PlaceTerm, calls: Iterable[BandCall]) -> Iterator[BandCall]:
    """Calls with the place term in their masks. It differs between blocks, so only one call's masks are in memory at a time."""
    places = term.places[:, None]
    for group, mask, _ in calls:
        placed = term.over(group.queries(places[:, :, item.shift :])[:, 0], group.keys(places)[:, 0])
        for hiding in (mask, None if item.hole is None else group.keys(item.hole)[:, :, None]):
            if hiding is not None:
                placed.add_(hiding)
        yield group, placed, None


def _unbiased_calls(plan: Plan, shift: int, band: BandSettings) -> Iterator[BandCall]:
    """The calls of a plan with several blocks, without padding and bias. A call takes as many blocks of a group as it may."""
    for group in plan.groups:
        mask = block_mask(group, shift, band.left, band.right, plan.block, band.dtype)
        for part in group.parts(max(1, plan.queries // plan.block)):
            yield part, mask, None


def _plan(item: Item, band: BandSettings, backward: bool = False) -> Plan:
    sizes = (item.q_len, item.kv_len, item.shift, band.left, band.right)
    if band.dropout is not None:
        return band_plan(*sizes, item.q.dtype, torch.get_num_threads(), block=DROPOUT_BLOCK)
    return band_plan(*sizes, item.q.dtype, torch.get_num_threads(), backward=backward, tokens=item.globals is not None)


def _in_blocks(item: Item, band: BandSettings, backward: bool = False) -> bool:
    return any(group.blocks > 1 for group in _plan(item, band, backward).groups)


ColumnCall = tuple[int, int, Tensor | None, Tensor | None]
"""A call over the global columns: first query row, end row, mask, distances if needed."""


def column_calls(item: Item, columns: Tensor, band: BandSettings) -> Iterable[ColumnCall]:
    """The calls for query rows that need the global columns.

    Far from every global token no pair is hidden, and no mask is needed. Where the band covers all columns, there is no call.
    """
    key = ("columns", item.q_len, item.shift, band.pattern, band.bias is None, tuple(columns.tolist()), band.dtype)
    calls = BYTE_CACHE.get(key, lambda: list(_find_column_calls(item, columns, band)))
    if item.term is not None:
        return ((first, last, item.add_term(mask, slice(first, last), columns), None) for first, last, mask, _ in calls)
    if band.bias is None:
        return calls
    return [(first, last, band.add_bias(mask, distance), distance) for first, last, mask, distance in calls]


def _find_column_calls(item: Item, columns: Tensor, band: BandSettings) -> Iterator[ColumnCall]:
    """:func:`column_calls` without bias and place term."""
    q_len, left, right = item.q_len, band.left, band.right
    start = torch.arange(0, q_len, COLUMN_BLOCK)[:, None] + item.shift
    stop = (start + COLUMN_BLOCK).clamp(max=q_len + item.shift) - 1
    any_inside, all_inside = start - columns <= left, stop - columns <= left
    if not band.causal:
        any_inside &= columns - stop <= right
        all_inside &= columns - start <= right
    row = 0
    hidden_pairs = any_inside.any(1).int() + all_inside.all(1).int()  # none, some or all of a block's pairs
    for hidden, blocks in itertools.groupby(hidden_pairs.tolist()):
        end = min(q_len, row + COLUMN_BLOCK * len(list(blocks)))
        for first in range(row, end, COLUMN_CALL_QUERIES) if hidden != 2 else ():
            last, mask, distance = min(first + COLUMN_CALL_QUERIES, end), None, None
            if hidden or band.bias is not None:
                distance = torch.arange(first, last)[:, None] + item.shift - columns[None, :]
            if hidden and distance is not None:
                inside = distance <= left if band.causal else (distance <= left) & (distance >= -right)
                mask = additive_mask(inside, band.dtype)[None, None]
            yield first, last, mask, distance
        row = end


def row_mask(item: Item, rows: Tensor, band: BandSettings) -> tuple[Tensor | None, Tensor]:
    """Mask and distances of global query rows. They see every key except holes and, if causal, later keys."""
    distance = (rows + item.shift)[:, None] - torch.arange(item.kv_len)[None]
    mask = None if item.hole is None else item.hole[:, :, None]
    if band.causal:
        ahead = additive_mask(distance < 0, band.dtype)[None, None]
        mask = ahead if mask is None else mask + ahead
    return item.add_term(band.add_bias(mask, distance), rows, slice(None)), distance


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of ``x (b, H, N, …)`` as ``(b, H, g, …)``."""
    return x.index_select(2, index)


def _doubled(*tensors: Tensor) -> tuple[Tensor, ...]:
    """``(b, H, 1, …)`` with its row repeated. In half precision the kernel is several times slower for one row than for two."""
    return tuple(torch.cat([x, x], 2) for x in tensors)


def _is_doubled(q: Tensor) -> bool:
    """Whether ``q (b, H, n, D)`` is a single row in half precision, which is doubled."""
    return q.shape[2] == 1 and q.element_size() < 4


def band_forward(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, global_mask: Tensor | None,
    left: int, right: int, causal: bool, global_rows: bool, scale: float, bias: Tensor | None = None, ahead: int = 0,
    places: Tensor | None = None, tables: Tensor | None = None, dropout: float = 0.0, seed: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention over ``i - left … i + right`` and global tokens.

    Args:
        q, k, v: ``(B, H, Nq, D)``, ``(B, H, Nk, D)``; the queries are the last Nq positions.
        key_mask: ``(B, Nk)`` bool, True = real token, or None.
        global_mask: ``(B, Nk)`` bool, or None: the keys that every query sees.
        global_rows: whether the global tokens also see every key.
        bias, ahead: a :class:`DistanceBias` to add to the scores.
        places, tables: a :class:`PlaceTerm` to add to the scores, with the tables of :meth:`~PlaceTerm.for_band`.
        dropout, seed: dropout of the weights, see :class:`.dropout.Dropout`. Not together with bias, places and tables.
    Returns:
        output ``(B, H, Nq, D)``, stored token-major, and log-sum-exp ``(B, H, Nq)``.
    """
    out, lse = empty_results(q)
    band = BandSettings.of(lse.dtype, bias, ahead, left, right, causal, global_rows, scale, Dropout.of(dropout, seed))
    if key_mask is not None:
        out.zero_()
        lse.zero_()
    term = _term(places, tables, lse.dtype)
    for number, item in enumerate(items(q, k, v, key_mask, global_mask, lambda item: _in_blocks(item, band), term)):
        plan = _plan(item, band)
        of_item, leaves_out_later = (out[item.by_query], lse[item.by_query]), item.causal(band, plan)
        for call, (g, mask, _) in enumerate(_band_calls(item, band, plan)):
            inputs = g.queries(item.q), g.keys(item.k), g.keys(item.v)
            parts = band.part((number, BAND, call), *inputs, mask, leaves_out_later)
            if plan.dense and item.hole is None and parts[0].shape == out.shape and parts[0].stride() == out.stride():
                return parts  # nothing else writes to the results
            for result, part in zip(of_item, parts, strict=True):
                g.queries(result).copy_(part)
        if item.globals is not None and not plan.dense:
            _globals_forward(number, item, item.globals, band, *of_item)
        if item.hole is not None:
            of_item[0].masked_fill_(item.padding_rows(item.hole), 0)
    return out, lse


def _term(places: Tensor | None, tables: Tensor | None, dtype: torch.dtype) -> PlaceTerm | None:
    return None if places is None or tables is None else PlaceTerm(places, tuple(tables.to(dtype)))


def _globals_forward(number: int, item: Item, columns: Tensor, band: BandSettings, out: Tensor, lse: Tensor) -> None:
    """Merge the global keys outside the band into ``out`` and ``lse``. Then overwrite the rows of the global queries."""
    keys, values = _take(item.k, columns), _take(item.v, columns)
    for call, (first, last, mask, _) in enumerate(column_calls(item, columns, band)):
        queries, of_out, of_lse = (x[:, :, first:last] for x in (item.q, out, lse))
        if len(columns) <= MAX_PLAIN_KEYS and band.dropout is None:
            merge_into(of_out, of_lse, *few_keys(queries, keys, values, mask, band.scale))
        else:
            merge_into(of_out, of_lse, *band.part((number, COLUMNS, call), queries, keys, values, mask))
    rows = item.global_rows()
    if band.global_rows and len(rows):
        mask, _ = row_mask(item, rows, band)
        queries = _take(item.q, rows)
        if _is_doubled(queries) and band.dropout is None:
            (queries,), mask = _doubled(queries), None if mask is None else mask.expand(-1, -1, 2, -1)
        for result, part in zip((out, lse), band.part((number, ROWS, 0), queries, item.k, item.v, mask), strict=True):
            result.index_copy_(2, rows, part[:, :, : len(rows)])


cpu_band = torch.library.custom_op(f"{OPERATORS}::cpu_band", band_forward, mutates_args=(), device_types="cpu")


class _BackwardState(NamedTuple):
    """One item's output gradient, forward results and gradient accumulators, ``(b, H, tokens, …)``. The accumulators are views."""

    grad: Tensor
    out: Tensor
    lse: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dbias: Tensor | None
    """Gradient of the whole table, ``(H, distances)``; ``None`` where it is not needed."""

    def gradients_of_call(
        self, band: BandSettings, place: Place, inputs: tuple[Tensor, ...], mask: Tensor | None, distance: Tensor | None,
        causal: bool = False,
    ) -> Gradients:  # fmt: skip
        """The gradients of q, k, v for one call. ``inputs``: grad, q, k, v, out, lse. Adds the bias gradient to :attr:`dbias`."""
        if self.dbias is not None and band.bias is not None and distance is not None:
            of_scores, _ = score_gradient(mask, band.scale, *inputs)
            band.bias.add_gradient(self.dbias, distance, of_scores.sum(0))
        grad, q, k, v, out, lse = inputs
        if k.shape[2] <= MAX_PLAIN_KEYS and band.dropout is None:
            return few_keys_backward(mask, band.scale, *inputs)
        if doubled := _is_doubled(q) and band.dropout is None:  # the repeated row gets no gradient
            grad, (q, out, lse) = F.pad(grad, (0, 0, 0, 1)), _doubled(q, out, lse)
            mask = None if mask is None else mask.expand(-1, -1, 2, -1)
        parts = grad, q, k, v, out, lse
        dq, dk, dv = part_backward(band.dropout, place, *parts, mask=mask, scale=band.scale, causal=causal)
        return dq[:, :, :1] if doubled else dq, dk, dv


@torch.library.custom_op(f"{OPERATORS}::cpu_band_backward", mutates_args=(), device_types="cpu")
def cpu_band_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, key_mask: Tensor | None, global_mask: Tensor | None,
    places: Tensor | None, tables: Tensor | None, dropout: float, seed: int,
    left: int, right: int, causal: bool, global_rows: bool, scale: float, bias: Tensor | None, ahead: int, of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of :func:`cpu_band` with respect to q, k, v and the bias. The bias gradient is empty without ``of_bias``. Time and memory
    are linear in the number of tokens."""
    dbias = like_bias(q, bias if of_bias else None).zero_()
    dq, dk, dv = token_major(q.dtype, q, k, v)
    band = BandSettings.of(lse.dtype, bias, ahead, left, right, causal, global_rows, scale, Dropout.of(dropout, seed))
    for x in (dq, dk, dv):
        x.zero_()
    term = _term(places, tables, lse.dtype)
    for number, item in enumerate(items(q, k, v, key_mask, global_mask, lambda item: _in_blocks(item, band, backward=True), term)):
        at, keys = item.by_query, item.by_key
        into = _BackwardState(grad[at], out[at], lse[at], dq[at], dk[keys], dv[keys], dbias if of_bias else None)
        plan = _plan(item, band, backward=True)
        if item.hole is not None:
            into = into._replace(grad=into.grad.masked_fill(item.padding_rows(item.hole), 0))
        if item.globals is not None and not plan.dense:
            if global_rows:
                into = _rows_backward(number, item, item.global_rows(), band, into)
            _columns_backward(number, item, item.globals, band, into)
        for call, (g, mask, distance) in enumerate(_band_calls(item, band, plan)):
            of_out, of_q, of_k, of_v = g.queries(into.grad), g.queries(item.q), g.keys(item.k), g.keys(item.v)
            inputs = (of_out, of_q, of_k, of_v, g.queries(into.out), g.queries(into.lse))
            parts = into.gradients_of_call(band, (number, BAND, call), inputs, mask, distance, item.causal(band, plan))
            if plan.dense and item.q.shape == q.shape and item.k.shape == k.shape and item.hole is None:  # nothing else adds to them
                return *parts, dbias
            g.queries(into.dq).add_(parts[0])
            g.add_to_keys(into.dk, parts[1])
            g.add_to_keys(into.dv, parts[2])
    return dq, dk, dv, dbias


def _rows_backward(number: int, item: Item, rows: Tensor, band: BandSettings, into: _BackwardState) -> _BackwardState:
    """Add the gradients of the global rows. Returns ``into`` with their ``grad`` zeroed, since no other call computed these outputs."""
    if not len(rows):
        return into
    mask, distance = row_mask(item, rows, band)
    grad, queries, out, lse = (_take(x, rows) for x in (into.grad, item.q, into.out, into.lse))
    dq, dk, dv = into.gradients_of_call(band, (number, ROWS, 0), (grad, queries, item.k, item.v, out, lse), mask, distance)
    into.dq.index_add_(2, rows, dq)
    into.dk.add_(dk)
    into.dv.add_(dv)
    return into._replace(grad=into.grad.index_fill(2, rows, 0))


def _columns_backward(number: int, item: Item, columns: Tensor, band: BandSettings, into: _BackwardState) -> None:
    keys, values = _take(item.k, columns), _take(item.v, columns)
    for call, (first, last, mask, distance) in enumerate(column_calls(item, columns, band)):
        grad, queries, out, lse, dq = (x[:, :, first:last] for x in (into.grad, item.q, into.out, into.lse, into.dq))
        inputs = (grad, queries, keys, values, out, lse)
        parts = into.gradients_of_call(band, (number, COLUMNS, call), inputs, mask, distance)
        dq.add_(parts[0])
        into.dk.index_add_(2, columns, parts[1])
        into.dv.index_add_(2, columns, parts[2])


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, global_mask, *ctx.settings, bias, ctx.ahead, places, tables, ctx.dropout, ctx.seed = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, key_mask, global_mask, bias, places, tables, *output)


@one_gradient_at_a_time()
def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, global_mask, bias, places, tables, out, lse = ctx.saved_tensors
    of_bias = bias is not None and ctx.needs_input_grad[10]
    settings = (places, tables, ctx.dropout, ctx.seed, *ctx.settings, bias, ctx.ahead, of_bias)
    dq, dk, dv, dbias = cpu_band_backward(grad, q, k, v, out, lse, key_mask, global_mask, *settings)
    gradients = dq, dk, dv, *[None] * 7, dbias.to(bias.dtype) if of_bias else None, *[None] * 5
    return first_derivatives_only(gradients)


cpu_band.register_fake(lambda q, *_, **__: empty_results(q))
cpu_band_backward.register_fake(
    lambda _grad, q, k, v, *settings: (*token_major(q.dtype, q, k, v), like_bias(q, settings[-3] if settings[-1] else None))
)
cpu_band.register_autograd(_backward, setup_context=_setup_context)
