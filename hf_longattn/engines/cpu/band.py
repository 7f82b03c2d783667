"""The path ``cpu-band``: a band and global tokens by PyTorch's fused kernel for the CPU.

The queries are cut into blocks. The keys of a block are a contiguous slice, so the keys of all blocks are a strided
view (``as_strided``, no copy). One kernel call runs many blocks. Global tokens need further calls: as keys of all
queries (global columns), and as queries of all keys (global rows).

:func:`band_plan` chooses the block size with the lowest estimated cost (:class:`Costs`). Small blocks compute few
pairs outside the band. Large blocks need fewer calls and less time per pair. With AMX, the kernel repacks the keys of
every block; large blocks repack fewer keys in total. The largest block has all queries: this is the dense kernel with
the band as its mask. It is fastest for sequences up to about the band's width, and needs no further calls for global
tokens.

The plan depends only on lengths, band, dtype, processor, and whether there are global tokens. Results are therefore
bitwise equal for every batch size and number of heads.
"""

from __future__ import annotations

import functools
import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from ..batch import all_moderate
from ..byte_cache import BYTE_CACHE
from ..call import DispatchContext, Pattern
from ..score_terms import DistanceBias
from .kernels import additive_mask, token_major, visible_mask
from .kernels import why_not as why_no_kernel
from .onednn import has_amx
from .softmax import Listed, Part, Runs, Scope, Side, Source, source

KERNEL_QUERIES, KERNEL_KEYS = (32, 64, 256), 512
"""Tile sizes of PyTorch's CPU flash kernel: queries of a tile if there are N < 192 queries, N < 768, and more; keys of
a tile for every N."""
MAX_BLOCK_QUERIES = 2048
"""Maximum queries in one block. This bounds the memory of its mask."""
COLUMN_BLOCK, COLUMN_CALL_QUERIES = 32, 512
"""For calls with global tokens as keys: queries per block, and maximum queries per call. A call takes whole blocks."""

DROPOUT_BLOCK = 64
"""Queries per block with dropout. Forward and backward need equal blocks to draw the same weights."""
BAND, COLUMNS, ROWS = range(3)
"""First entry of :attr:`Part.label`: whether a part computes the band, global columns or global rows."""


def why_not(context: DispatchContext) -> str | None:
    """Why this path does not run, as a clause. ``None`` if it may run."""
    why = why_no_kernel(context)
    if why is not None:
        return why
    if context.call.score_mod is None or "cpu-band" in context.call.term.engines:
        return None
    return "the fused kernel adds no score term other than a bias by distance"


def plan_of(context: DispatchContext) -> Plan:
    """The cheapest plan for the call's band."""
    band, kv_len = context.pattern, context.kv_len
    sizes = (context.q_len, kv_len, kv_len - context.q_len, min(band.left, kv_len), min(band.right, kv_len))
    return band_plan(*sizes, context.dtype, torch.get_num_threads(), tokens=context.call.global_mask is not None)


class Group(NamedTuple):
    """Blocks of equal size. Block i has ``block`` queries from ``first + i * block`` and ``width`` keys from
    ``start + i * step``."""

    first: int
    blocks: int
    block: int
    start: int
    step: int
    width: int

    @property
    def queries(self) -> Runs:
        return Runs(self.first, self.block, self.blocks, self.block)

    @property
    def keys(self) -> Runs:
        return Runs(self.start, self.width, self.blocks, self.step)

    def parts(self, count: int) -> Iterator[Group]:
        """Split the group into groups of at most ``count`` blocks."""
        for number in range(0, self.blocks, count):
            first, start = self.first + number * self.block, self.start + number * self.step
            yield self._replace(first=first, start=start, blocks=min(count, self.blocks - number))

    def sees_all(self, shift: int, left: int, right: int) -> bool:
        """Whether the band covers every pair of a block. ``shift``: index of the block's first query within its
        keys."""
        return shift + self.block - 1 <= left and self.width - 1 - shift <= right


def groups(q_len: int, kv_len: int, shift: int, left: int, right: int, block: int) -> Iterator[Group]:
    """Yield groups that cover all queries: one for the inner blocks, and one for each block at the edges, where keys
    are cut off.

    Args:
        shift: position of the first query within the keys.
    """
    # the inner blocks are first … last - 1
    first = -(-max(0, left - shift) // block)
    last = max(first, min(q_len, kv_len - right - shift) // block)
    edges = [(0, q_len)]
    if last > first:
        query = first * block
        width = left + block + right
        yield Group(query, last - first, block, start=query + shift - left, step=block, width=width)
        edges = [(0, query), (last * block, q_len)]
    for start, stop in edges:
        for query in range(start, stop, block):
            size = min(block, stop - query)
            key = max(0, query + shift - left)
            width = min(kv_len, query + size + shift + right) - key
            yield Group(query, 1, size, start=key, step=width, width=width)


class Costs(NamedTuple):
    """Costs in nanoseconds per head, measured with 12 heads of dimension 64."""

    sizes: tuple[int, ...]
    """Block sizes to choose from, in queries. One block of all queries is a choice too."""
    pair: tuple[float, float, float]
    """Cost per query-key pair without a mask, for each tile size of :data:`KERNEL_QUERIES`."""
    masked: float
    """Additional cost per pair with a mask."""
    key: float
    """Cost per key of a block, for repacking it (AMX) or summing its gradients (backward)."""
    call: float
    """Cost per kernel call."""
    tokens: float
    """Cost of all calls for global tokens together."""
    queries: int
    """Maximum queries per call, so that results fit into the CPU cache."""

    def of(self, group: Group, shift: int, left: int, right: int) -> float:
        """The cost of a group of blocks. ``shift``: index of a block's first query within its keys."""
        size = (group.block >= 192) + (group.block >= 768)
        pair = self.pair[size]
        if not group.sees_all(shift, left, right):
            pair += self.masked
        calls = -(-group.blocks // max(1, self.queries // group.block))
        pairs = group.block * group.width
        # a causal block of all queries and keys: the kernel skips keys after a query
        if right == 0 and group.block == group.width:
            rows, pairs = KERNEL_QUERIES[size], 0
            for row in range(0, group.block, rows):
                columns = -(-(row + rows) // KERNEL_KEYS) * KERNEL_KEYS
                pairs += min(rows, group.block - row) * min(group.width, columns)
        return calls * self.call + group.blocks * (pairs * pair + group.width * self.key)


FP32 = Costs((32, 64), (3.4, 3.2, 3.1), 0.2, 0.0, 3_500.0, 50_000.0, 2048)
BF16 = Costs((32, 64), (3.55, 3.2, 3.15), 0.2, 0.0, 5_800.0, 100_000.0, 2048)
BF16_AMX = Costs((32, 192, 256, 384, 768), (3.3, 1.1, 0.8), 0.25, 110.0, 5_000.0, 80_000.0, 384)
FP32_BACKWARD = Costs((64, 192), (8.0, 8.0, 7.6), 0.3, 100.0, 8_000.0, 200_000.0, 256)
BF16_BACKWARD = Costs((64, 192, 256), (8.0, 7.0, 5.4), 0.3, 250.0, 8_000.0, 200_000.0, 256)
"""CPU time of one thread on an AMD EPYC of 2024 (AVX-512, no AMX), for windows of 512 tokens and sequences of 256 to
2,048. The AMX costs are estimated from the times of whole models on an Intel Xeon of 2023."""


class Plan(NamedTuple):
    """Blocks that cover all queries of a sequence, and the calls that run them."""

    groups: tuple[Group, ...]
    block: int
    """Queries per block. The last block may have fewer."""
    queries: int
    """Maximum queries per call."""

    dense: bool
    """Whether one block has all queries and keys. Its mask then includes the global tokens."""
    most_blocks: int
    """The number of blocks in the largest group."""


@functools.lru_cache(4096)
def band_plan(
    q_len: int,
    kv_len: int,
    shift: int,
    left: int,
    right: int,
    dtype: torch.dtype,
    threads: int,
    *,
    backward: bool = False,
    tokens: bool = False,
    block: int | None = None,
) -> Plan:
    """Plan with the lowest cost for a band of ``left`` keys before and ``right`` keys after each query.

    Args:
        shift: position of the first query within the keys.
        threads: number of threads of the process.
        backward: whether the plan is for the backward pass.
        tokens: whether there are global tokens.
        block: a block size to use instead of the cheapest.
    """
    half = dtype.itemsize < 4
    costs = BF16 if half else FP32
    if backward:
        costs = BF16_BACKWARD if half else FP32_BACKWARD
    elif dtype == torch.bfloat16 and has_amx():
        costs = BF16_AMX._replace(queries=BF16_AMX.queries * threads)  # each thread has its own CPU cache
    sizes = [size for size in costs.sizes if size < q_len]
    if q_len <= MAX_BLOCK_QUERIES:
        sizes.append(q_len)
    if block:
        sizes = [block]
    cost_of_plan = {}
    for size in sizes:
        blocks = tuple(groups(q_len, kv_len, shift, left, right, size))
        dense = (blocks[0].block, blocks[0].width) == (q_len, kv_len)
        plan = Plan(blocks, size, costs.queries, dense, max(group.blocks for group in blocks))
        cost = sum(costs.of(group, group.first + shift - group.start, left, right) for group in blocks)
        if tokens and not dense:
            cost += costs.tokens
        cost_of_plan[plan] = cost
    return min(cost_of_plan, key=cost_of_plan.__getitem__)


def block_mask(group: Group, shift: int, left: int, right: int, block: int, dtype: torch.dtype) -> Tensor | None:
    """The additive mask of a group's blocks, ``(1, 1, group.block, group.width)``; ``None`` if it hides no pair.

    It is a view of a cached mask, and must not be modified. The cached mask is that of a complete block: ``block``
    queries, the first at key ``left``, and all keys of their bands.
    """
    first = group.first + shift - group.start
    if group.sees_all(first, left, right):
        return None

    def make() -> Tensor:
        distance = torch.arange(block)[:, None] + left - torch.arange(block + left + right)
        return additive_mask((distance > left) | (distance < -right), dtype)[None, None]

    whole = BYTE_CACHE.get(("band", block, left, right, dtype), make)
    return whole[:, :, : group.block, left - first : left - first + group.width]


class Item(Scope):
    """A scope of band attention: all batch rows together, or one batch row without its outer padding.

    plan: the plan of its blocks, which :meth:`Band.most_blocks` sets.
    """

    plan: Plan

    def __init__(
        self,
        source: BandSource,
        rows: slice,
        queries: slice,
        keys: slice,
        shift: int,
        hole: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> None:
        """
        Args:
            rows, queries, keys: slices of the batch axis, the queries' axis and the keys' axis.
            shift: position of the first query within the item's keys.
            hole: additive mask ``(1, 1, Nk)`` of padding between real keys, if any.
            tokens: positions of the global tokens within the item's keys, if any.
        """
        self.source, self.shift, self.hole, self.tokens = source, shift, hole, tokens
        self.by_query = rows, slice(None), queries
        self.by_key = rows, slice(None), keys
        batch, _, self.q_len, _ = source.q[self.by_query].shape
        self.kv_len = source.k[self.by_key].shape[2]
        is_everything = hole is None and (batch, self.q_len, self.kv_len) == (*source.q.shape[::2], source.k.shape[2])
        self.most_blocks = source.most_blocks(self)
        self.whole = is_everything and self.most_blocks == 0
        if hole is not None:  # padding between real tokens, as (1, 1, Nk, 1) bool
            self.padding = (hole != 0)[..., None]
            self.padding_of_queries = self.padding[:, :, shift : shift + self.q_len]

    @property
    def parts(self) -> Iterable[Part]:  # type: ignore[override]
        return self.source.parts(self)

    def read(self, name: str, x: Tensor) -> Tensor:
        is_key = name in ("k", "v")
        x = x[self.by_key if is_key else self.by_query]
        if self.source.is_backward and self.source.plain_backward:
            x = x.to(self.source.dtype)
        if self.hole is None or name in ("out", "lse") or (name != "grad" and all_moderate((x,))):  # 0 · NaN is NaN
            return x
        return x.masked_fill(self.padding if is_key else self.padding_of_queries, 0)

    def into(self, name: str, x: Tensor) -> Tensor:
        return x[self.by_key if name in ("dk", "dv") else self.by_query]

    def finish(self, results: dict[str, Tensor]) -> None:
        if self.hole is not None and "out" in results:
            self.into("out", results["out"]).masked_fill_(self.padding_of_queries, 0)

    def with_hole(self, mask: Tensor | None, keys: Side) -> Tensor | None:
        """``mask`` plus, if there is padding between real keys, the padding mask of the part's keys."""
        if self.hole is None:
            return mask
        hole = keys.of(self.hole)[:, :, None]
        if mask is None:
            return hole
        return mask + hole

    def distances(self, part: Part) -> Tensor:
        """Distances (query - key) of a part's pairs, ``(queries, keys)``. They are equal for all runs of a
        :class:`Runs`."""
        return (_positions(part.queries) + self.shift)[:, None] - _positions(part.keys)

    def far_parts(self, tokens: Tensor, rows_first: bool) -> list[Part]:
        """The parts for the global tokens at positions ``tokens``, cached: global columns, in which all queries see
        them, and global rows, in which they see all keys."""
        pattern, dtype = self.source.pattern, self.source.dtype

        def make() -> tuple[list[Part], list[Part]]:
            """The parts of the columns, and those of the rows. A causal row has all keys up to its query."""
            rows = list[Part]()
            queries = tokens - self.shift
            queries = queries[(queries >= 0) & (queries < self.q_len)]
            if pattern.global_rows and len(queries):
                part = Part(Listed(queries), Runs(0, self.kv_len), label=(ROWS, 0), overrides=True)
                if pattern.causal:
                    part = part._replace(mask=additive_mask(self.distances(part) < 0, dtype)[None, None])
                rows.append(part)
            return [*self._columns(tokens)], rows

        columns, rows = BYTE_CACHE.get(
            ("far parts", self.q_len, self.kv_len, self.shift, pattern, tuple(tokens.tolist()), dtype), make
        )
        return [*rows, *columns] if rows_first else [*columns, *rows]

    def _columns(self, columns: Tensor) -> Iterator[Part]:
        """Yield the parts for global columns, whose positions are ``columns (g,)``. Queries are left out if their band
        has all global tokens.

        The mask hides pairs within the band, so queries far from every global token need no mask.
        """
        q_len, pattern = self.q_len, self.source.pattern
        left, right, causal = pattern.left, pattern.right, pattern.causal
        # For each block of queries and each global token, (blocks, g): whether any pair or every pair is in the band.
        first_query = torch.arange(0, q_len, COLUMN_BLOCK)[:, None] + self.shift
        last_query = (first_query + COLUMN_BLOCK).clamp(max=q_len + self.shift) - 1
        any_inside = first_query - columns <= left
        all_inside = last_query - columns <= left
        if not causal:
            any_inside &= columns - last_query <= right
            all_inside &= columns - first_query <= right
        stop = number = 0
        # 0, 1, 2: the mask hides none, some or all of a block's pairs
        hidden_pairs = any_inside.any(1).int() + all_inside.all(1).int()
        for hidden, blocks in itertools.groupby(hidden_pairs.tolist()):
            start = stop
            stop = min(q_len, start + COLUMN_BLOCK * len(list(blocks)))
            if hidden == 2:
                continue
            for first in range(start, stop, COLUMN_CALL_QUERIES):
                queries = Runs(first, min(COLUMN_CALL_QUERIES, stop - first))
                part = Part(queries, Listed(columns), label=(COLUMNS, number), merges=True)
                if hidden:
                    distance = self.distances(part)
                    inside = distance <= left
                    if not causal:
                        inside &= distance >= -right
                    part = part._replace(mask=additive_mask(inside, self.source.dtype)[None, None])
                yield part
                number += 1


def _positions(side: Side) -> Tensor:
    """The tokens of one run, or the listed tokens, ``(n,)``."""
    if isinstance(side, Runs):
        return torch.arange(side.start, side.start + side.size)
    return cast(Listed, side).tokens


class BandSource(Source):
    """Base class of sources for a band and global tokens."""

    pattern: Pattern
    key_mask: Tensor | None
    global_mask: Tensor | None
    plain_backward: ClassVar[bool] = False
    """Whether the backward pass uses plain products in fp32, for which each item converts its inputs once."""
    is_backward: bool

    @abstractmethod
    def parts(self, item: Item) -> Iterable[Part]:
        """The parts of an item."""

    @abstractmethod
    def most_blocks(self, item: Item) -> int:
        """The number of blocks in the item's largest group; 0 if a single part has all queries and keys.

        A view of several blocks has the blocks on its batch axis. Batch rows then run as separate items.
        """

    def prepare(self, out: Tensor, lse: Tensor) -> None:
        if self.key_mask is not None:
            out.zero_()
            lse.zero_()

    def scopes(self, backward: bool) -> Iterator[Item]:
        """One item for the batch, or one per batch row, from its first to its last real token. Rows without a real
        query are skipped."""
        self.is_backward = backward
        everything, kv_len = slice(None), self.k.shape[2]
        earlier = kv_len - self.q.shape[2]  # keys before the first query
        if self.key_mask is None and self.global_mask is None:
            item = Item(self, everything, everything, everything, earlier)
            if len(self.q) == 1 or item.most_blocks <= 1:
                yield item
                return
        for row in range(len(self.q)):
            # The real tokens of the row are among the keys start … stop - 1, and ``hole`` is padding between them.
            start, stop, hole = 0, kv_len, None
            if self.key_mask is not None:
                real = self.key_mask[row].nonzero()
                if not len(real):
                    continue
                start, stop = int(real[0]), int(real[-1]) + 1
                if len(real) != stop - start:
                    hole = additive_mask(~self.key_mask[row, start:stop], self.dtype)[None, None]
            first = max(start, earlier)
            if first >= stop:
                continue
            tokens = None
            if self.global_mask is not None:
                tokens = self.global_mask[row, start:stop].nonzero()[:, 0]
                if not len(tokens):
                    tokens = None
            queries, keys = slice(first - earlier, stop - earlier), slice(start, stop)
            yield Item(self, slice(row, row + 1), queries, keys, first - start, hole, tokens)


@source
class Band(BandSource):
    """Attention of query i to keys ``i - left`` to ``i + right`` and to global tokens. The queries are the last Nq
    positions.

    - learned: the table of a :class:`DistanceBias` or a :class:`~..score_terms.ColumnTerm`, if any. The columns of the
      latter must be the first global tokens, and its numbers zero within the band.
    - fixed: key mask and global mask ``(B, Nk)`` bool, or None.
    - numbers: left, right, causal, whether global tokens attend to every key, and the maximum distance ahead in the
      bias table.
    """

    name = "band"
    sums_in_fp32 = False

    def read_arguments(self) -> None:
        """Set the masks, the pattern, and the bias or the columns that the learned table gives."""
        self.key_mask, self.global_mask = self.fixed
        left, right, causal, global_rows, ahead = self.numbers
        self.pattern = Pattern(left, right, bool(causal), True, bool(global_rows))
        self.bias: DistanceBias | None = None
        self.columns: Tensor | None = None
        if not self.learned:
            return
        like: Sequence[Tensor] = self.learned
        table = self.learned[0]
        if table.dim() == 4:
            self.columns = table.to(self.dtype)
            like = token_major(self.dtype, table)
        else:
            self.bias = DistanceBias(table.to(self.dtype), ahead)
        if self.learns:
            self.totals = [torch.zeros_like(x, dtype=self.dtype) for x in like]

    def most_blocks(self, item: Item) -> int:
        """Set the item's plan, and return the number of blocks in its largest group; 0 for a single part."""
        sizes = (item.q_len, item.kv_len, item.shift, self.pattern.left, self.pattern.right)
        settings: dict[str, Any] = {"backward": self.is_backward, "tokens": item.tokens is not None}
        if self.dropout:
            settings = {"block": DROPOUT_BLOCK}
        item.plan = band_plan(*sizes, self.q.dtype, torch.get_num_threads(), **settings)
        if item.plan.dense and self.columns is None:
            return 0
        return item.plan.most_blocks

    def parts(self, item: Item) -> Iterable[Part]:
        """The parts for the band, and those for global tokens, in the order in which a pass needs them."""
        near, far = self._near(item), list[Part]()
        # the single part of a dense plan has the global tokens too
        near_has_globals = item.plan.dense and self.columns is None
        if item.tokens is not None and not near_has_globals:
            far = item.far_parts(item.tokens, self.is_backward)
        # global rows run last in forward and first in backward
        parts = [*far, *near] if self.is_backward else [*near, *far]
        if item.hole is None and not self.learned:
            return parts
        return self._completed(item, parts)

    def _completed(self, item: Item, parts: Sequence[Part]) -> Iterator[Part]:
        """Yield the parts with bias and padding added to their masks."""
        masks: dict[tuple[int, int, int], Tensor] = {}
        for part in parts:
            if self.bias is not None:
                part = self._biased(item, part, self.bias, masks)
            elif self.columns is not None and part.label[0] == COLUMNS:
                part = self._with_columns(item, part, self.columns)
            if item.hole is not None:
                part = part._replace(mask=item.with_hole(part.mask, part.keys))
            yield part

    def _near(self, item: Item) -> list[Part]:
        """The parts for the band. Their masks do not have padding and score terms yet."""
        plan, shift, left, right = item.plan, item.shift, self.pattern.left, self.pattern.right
        if plan.dense:
            tokens = item.tokens if self.columns is None else None
            visible = visible_mask(item.q_len, item.kv_len, shift, self.pattern, tokens, self.dtype)
            causal = self.pattern.causal and shift == 0
            return [Part(Runs(0, item.q_len), Runs(0, item.kv_len), visible, (BAND, 0), causal=causal)]

        def make() -> list[Part]:
            parts: list[Part] = []
            for group in plan.groups:
                mask = block_mask(group, shift, left, right, plan.block, self.dtype)
                for piece in group.parts(max(1, plan.queries // plan.block)):
                    parts.append(Part(piece.queries, piece.keys, mask, (BAND, len(parts))))
            return parts

        return BYTE_CACHE.get(
            ("parts", item.q_len, item.kv_len, shift, left, right, plan.block, plan.queries, self.dtype), make
        )

    def _with_columns(self, item: Item, part: Part, table: Tensor) -> Part:
        """A part of global columns, with the numbers of :attr:`columns` added to its mask, ``(1, H, queries,
        keys)``."""
        queries = cast(Runs, part.queries)
        tokens = cast(Listed, part.keys).tokens
        # Global tokens beyond the table's columns get no number.
        inside, index = tokens < table.shape[3], tokens.clamp(max=table.shape[3] - 1)
        if self.totals:
            total = queries.of(self.totals[0][item.by_query])
            part = part._replace(of_scores=lambda gradient: total.index_add_(3, index, gradient * inside))
        added = queries.of(table[item.by_query]).index_select(3, index).mul_(inside)
        if part.mask is not None:
            added.add_(part.mask)
        return part._replace(mask=added)

    def _biased(self, item: Item, part: Part, bias: DistanceBias, masks: dict[tuple[int, int, int], Tensor]) -> Part:
        """The part with the bias added to its mask, ``(1, H, queries, keys)``. Parts of the band with equal shape and
        equal distances share a mask in ``masks``."""
        if self.totals:
            total, distances = self.totals[0], item.distances(part)
            part = part._replace(of_scores=lambda gradient: bias.add_gradient(total, distances, gradient.sum(0)))
        shape = None
        if isinstance(part.queries, Runs) and isinstance(part.keys, Runs):
            shape = part.queries.size, part.keys.size, part.queries.start + item.shift - part.keys.start
            if shape in masks:
                return part._replace(mask=masks[shape])
        added = bias.over(item.distances(part))[None]
        if part.mask is not None:
            added.add_(part.mask)
        if shape is not None:
            masks[shape] = added
        return part._replace(mask=added)
