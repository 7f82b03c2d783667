"""The path ``cpu-visible-blocks``: attention by a mask of any kind, which is reduced to blocks of query-key pairs.

A block is hidden, visible or mixed. Hidden blocks cost nothing. Only mixed blocks keep their bits. The queries are
divided in halves, and these again, down to single blocks. Keys that all queries of such a range see are computed in
one call for the range, without a mask. A single block of queries then sees its remaining keys, with a mask if some of
them are mixed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..byte_cache import BYTE_CACHE
from ..call import AttentionCall, DispatchContext
from ..dense import repeat_heads, same_dtype
from .kernels import MASKED, MAX_TILE_PAIRS, additive_mask, why_not_tiles
from .softmax import Part, Runs, Scope, Side, Source, attend_parts, source

BLOCK = 64
"""Queries and keys of a block."""
HIDDEN, VISIBLE, MIXED = 0, 1, 2
"""Entries of :attr:`VisibleBlocks.table`. Entry ``MIXED + n`` has tile n."""
MAX_TILES = 1 << 14
"""Maximum mixed blocks of a mask, over all batch rows: 64 MiB of bits."""
SINGLE_COST, SHARED_COST = 1.5, 0.9
"""Estimated time per pair, relative to a masked call over all keys: in a call for one block of queries, and in a call
for several blocks. Measured times were 1.2 to 1.6, and 0.7 to 0.85 (4 and 8 heads of 64, 4,096 and 16,384 tokens, one
thread). Scattered blocks of keys take longest, because they are copied."""
SHARED_BLOCKS = 4
"""Minimum blocks of keys for a call that several blocks of queries share. If these queries see no other keys, there is
no minimum."""
CALL_BYTES = 200
"""Estimated size of a :class:`_Call` in bytes, without its keys."""
CALL_BLOCKS = 64
"""Maximum blocks of keys in a call. Keys that are not contiguous are copied."""


class VisibleBlocks(NamedTuple):
    """A mask, reduced to blocks of :data:`BLOCK` queries and keys.

    table: ``(B or 1, query blocks, key blocks)`` int32: :data:`HIDDEN`, :data:`VISIBLE`, or ``MIXED + n`` for the
        block with tile n.
    tiles: ``(mixed blocks, BLOCK, BLOCK)`` bool, True = visible. Pairs outside the mask are False.
    """

    table: Tensor
    tiles: Tensor

    @classmethod
    def of(cls, shape: Sequence[int], pieces: Iterable[tuple[int, int, Tensor]]) -> VisibleBlocks | None:
        """Reduce a mask of ``shape (B, 1, Nq, Nk)``. ``None`` if a masked call over all keys of the pieces costs less.

        pieces: parts of the mask, each as its first query, its first key and ``(B or 1, queries, keys)`` bool, True =
            visible. Pairs outside all pieces are hidden. Pieces begin and end at borders of blocks, or at the end of
            the mask.
        """
        batch, _, *lengths = shape
        table = torch.zeros(batch, *(-(-length // BLOCK) for length in lengths), dtype=torch.int32)
        if type(table) is not Tensor:  # a fake tensor has no values
            return None
        tiles = list[Tensor]()
        count = 0  # tiles so far
        masked_cost = 0
        for query, key, piece in pieces:
            if len(piece) > 1 and bool((piece == piece[:1]).all()):
                piece = piece[:1]
            # HIDDEN or VISIBLE for each block, then the numbers of the mixed blocks.
            visible = _in_blocks(piece)
            codes = _any_in_blocks(visible).int()
            mixed = _any_in_blocks(_in_blocks(~piece)) & (codes == VISIBLE)
            row, query_block, key_block = mixed.nonzero(as_tuple=True)
            tiles.append(visible[row, query_block, :, key_block])
            codes[mixed] = torch.arange(MIXED + count, MIXED + count + len(row), dtype=torch.int32)
            rows, columns = codes.shape[1:]
            table[:, query // BLOCK : query // BLOCK + rows, key // BLOCK : key // BLOCK + columns] = codes
            count += len(row)
            if count > MAX_TILES:
                return None
            masked_cost += batch * rows * columns
        same_in_all_rows = bool((table == table[:1]).all())
        if same_in_all_rows:
            table = table[:1].clone()
        cost = sum(call.cost for row_calls in calls_of(table) for call in row_calls)
        if same_in_all_rows:
            cost *= batch
        return cls(table, torch.cat(tiles)) if cost < masked_cost else None


def _in_blocks(piece: Tensor) -> Tensor:
    """``piece (B, queries, keys)``, padded with False, as ``(B, query blocks, BLOCK, key blocks, BLOCK)``."""
    missing_rows, missing_columns = -piece.shape[1] % BLOCK, -piece.shape[2] % BLOCK
    if missing_rows or missing_columns:
        padded = F.pad(piece, (0, missing_columns, 0, missing_rows))
    else:
        padded = piece.contiguous()
    return padded.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK))


def _any_in_blocks(blocks: Tensor) -> Tensor:
    """Whether each block of :func:`_in_blocks` has a True entry, ``(B, query blocks, key blocks)``. Reads eight
    entries at a time, as one int64."""
    words = blocks.view(torch.int64)
    return (functools.reduce(torch.bitwise_or, words.unbind(2)) != 0).any(-1)


def why_not(context: DispatchContext) -> str | None:
    """Why this path does not run, as a clause. ``None`` if it may run. The mask is reduced only if no other reason
    holds."""
    why = why_not_tiles(context)
    if why is not None:
        return why
    if context.few_pairs or context.q_len < BLOCK:
        return "a mask costs less for few pairs"
    if context.blocks is None or context.blocks() is None:
        return "its mask leaves too few pairs out"
    return None


def visible_block_attention(q: Tensor, k: Tensor, v: Tensor, blocks: VisibleBlocks, call: AttentionCall) -> Tensor:
    """Softmax attention to the keys that a mask shows, ``(B, H, Nq, D)``; zeros where a query sees no key.

    q, k, v: ``(B, H, Nq, D)`` and ``(B, H_kv, Nk, D)``.
    call: gives scale, dropout and sinks.
    """
    q, k, v = same_dtype(q, k, v)
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    scale = call.scale_for(q.shape[-1])
    return attend_parts("visible blocks", q, k, v, scale, (), blocks, (BLOCK,), call.dropout, call.sink_scores)


class _Call(NamedTuple):
    """Blocks ``start … stop - 1`` of queries, and the blocks of keys that they see."""

    start: int
    stop: int
    keys: Any
    """``(n,)`` NumPy integers, ascending."""
    merges: bool
    """Whether an earlier call has computed other keys for these queries."""

    @property
    def cost(self) -> float:
        """Estimated time, relative to that of one block in a masked call over all keys."""
        count = self.stop - self.start
        return len(self.keys) * count * (SINGLE_COST if count == 1 else SHARED_COST)


def calls_of(table: Tensor) -> list[list[_Call]]:
    """The calls for each row of a ``table (B or 1, query blocks, key blocks)``, cached as long as the table exists."""
    return BYTE_CACHE.of(
        [table],
        ("calls",),
        lambda: [[*_calls(row.numpy())] for row in table],
        lambda calls: sum(call.keys.nbytes + CALL_BYTES for row_calls in calls for call in row_calls),
    )


def _calls(table: Any) -> Iterator[_Call]:
    """Yield the calls for a ``table (query blocks, key blocks)``."""
    # Ranges of query blocks that are still to be divided: start, stop, the key blocks that are done, (key blocks,)
    # bool, and whether there are any.
    ranges = [(0, len(table), np.zeros(table.shape[1], bool), False)]
    while ranges:
        start, stop, done, merges = ranges.pop()
        # The keys that some query block of the range sees, and those that all query blocks see without a mask.
        codes = np.where(done, HIDDEN, table[start:stop])
        seen = (codes != HIDDEN).any(0)
        shared = (codes == VISIBLE).all(0)
        single = stop - start == 1
        keys = seen if single else shared
        if single or keys.sum() >= SHARED_BLOCKS or (keys == seen).all():
            listed = np.flatnonzero(keys)
            for first in range(0, len(listed), CALL_BLOCKS):
                yield _Call(start, stop, listed[first : first + CALL_BLOCKS], merges or first > 0)
            done = done | keys
            merges = merges or len(listed) > 0
        if (seen & ~done).any():
            middle = (start + stop) // 2
            ranges += [(middle, stop, done, merges), (start, middle, done, merges)]


@dataclasses.dataclass(frozen=True)
class _Spans(Side):
    """Several runs of neighbouring tokens: ``(start, size)`` of each."""

    spans: tuple[tuple[int, int], ...]

    copies: ClassVar[bool] = True

    def of(self, x: Tensor) -> Tensor:
        return torch.cat([x.narrow(2, start, size) for start, size in self.spans], 2)

    def add(self, x: Tensor, values: Tensor) -> None:
        for (start, size), part in zip(self.spans, values.split([size for _, size in self.spans], 2), strict=True):
            x.narrow(2, start, size).add_(part)


@source
class BlocksOfMask(Source):
    """The visible blocks of a mask.

    - fixed: the two tensors of :class:`VisibleBlocks`.
    - numbers: :data:`BLOCK`.
    """

    name = "visible blocks"
    may_see_nothing = True

    def read_arguments(self) -> None:
        self.table, self.tiles = (x for x in self.fixed if x is not None)

    def prepare(self, out: Tensor, lse: Tensor) -> None:
        # if a block of queries sees no key, no part writes its results
        if not bool(self.table.any(-1).all()):
            out.zero_()
            lse.fill_(MASKED)

    def scopes(self, backward: bool) -> Iterator[Scope]:
        for item, row_calls in enumerate(calls_of(self.table)):
            rows = None if len(self.table) == 1 else slice(item, item + 1)
            yield Scope(self.parts(self.table[item], row_calls), rows)

    def parts(self, table: Tensor, calls: Iterable[_Call]) -> Iterator[Part]:
        """Yield the parts for ``calls``, whose blocks are described by ``table (query blocks, key blocks)``."""
        q_len, kv_len = self.q.shape[2], self.k.shape[2]
        for number, (start, stop, blocks, merges) in enumerate(calls):
            queries = Runs(start * BLOCK, min(stop * BLOCK, q_len) - start * BLOCK)
            # Key blocks that follow one another are one span of tokens, (first token, size).
            borders = np.flatnonzero(np.diff(blocks) > 1) + 1
            runs = [(int(run[0]) * BLOCK, int(run[-1] + 1) * BLOCK) for run in np.split(blocks, borders)]
            spans = tuple((first, min(last, kv_len) - first) for first, last in runs)
            keys = Runs(*spans[0]) if len(spans) == 1 else _Spans(spans)
            mask = self.mask(table[start, torch.from_numpy(blocks)]) if stop - start == 1 else None
            if mask is not None:
                mask = mask[:, :, : queries.size, : sum(size for _, size in spans)]
            # Dropout takes memory for every pair.
            size = max(BLOCK, MAX_TILE_PAIRS // (len(blocks) * BLOCK)) if self.dropout else queries.size
            for first in range(0, queries.size, size):
                piece = queries.part(first, min(size, queries.size - first))
                yield Part(piece, keys, mask, (number, first), merges)

    def mask(self, codes: Tensor) -> Tensor | None:
        """The additive mask ``(1, 1, BLOCK, n · BLOCK)`` of a block of queries; ``None`` if it hides nothing."""
        mixed = codes >= MIXED
        if not bool(mixed.any()):
            return None
        hidden = torch.zeros(BLOCK, len(codes), BLOCK, dtype=torch.bool)
        hidden[:, mixed] = ~self.tiles[(codes[mixed] - MIXED).long()].transpose(0, 1)
        return additive_mask(hidden.flatten(1), self.dtype)[None, None]
