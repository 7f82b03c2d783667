"""The path ``cpu-gathered``: computes tiles with PyTorch's fused CPU kernel. :mod:`.tile_layout` plans the calls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..byte_cache import BYTE_CACHE
from ..call import DispatchContext, GatherTile
from .dropout import drops_in_tiles
from .flash import MASKED, MAX_SHARED_CELLS, additive_mask, padding_of, why_not_tiles
from .softmax import Part, Runs, Scope, Scratch, Side, Source, source
from .tile_layout import KEY_MASK, NO_MASK, POSITION_OFFSET, Chunk, Limits, Rules, TileSpec, layout

FORWARD_LIMITS = Limits(queries=24576, keys=4096, viewed=1 << 40)
BACKWARD_LIMITS = Limits(queries=3072, keys=4096, viewed=24576)
"""Size limits of one kernel call. Its results then fit into the CPU cache, and the next call reuses their memory."""


def why_not(context: DispatchContext) -> str | None:
    """Why this path does not run, as a clause. ``None`` if it may run."""
    return why_not_tiles(context, drops=drops_in_tiles(context))


def flat_rules(tiles: Sequence[GatherTile]) -> list[int]:
    """The rules of all tiles as the operator takes them: four numbers per tile."""
    return [number for tile in tiles for number in Rules.of(tile)]


class TokenTable:
    """``x (B, H, N)`` or ``(B, H, N, D)``, and its view as a table ``(rows, …)`` for index_select. Gathered tokens reuse one buffer."""

    def __init__(self, name: str, x: Tensor, scratch: Scratch) -> None:
        self.name, self.width, self.scratch = name, math.prod(x.shape[3:]), scratch
        uneven = any(n > 1 and step % self.width for n, step in zip(x.shape[:3], x.stride(), strict=False))
        if uneven or (x.dim() == 4 and x.stride(3) != 1):
            x = x.contiguous()
        self.x = x
        self.steps = tuple(step // self.width for step in x.stride()[:3])
        rows = 1 + sum((n - 1) * step for n, step in zip(x.shape[:3], self.steps, strict=True))
        self.table = x.as_strided((rows, *x.shape[3:]), (self.width, 1)[: x.dim() - 2], x.storage_offset())


class _Viewed(Side):
    """Runs of tokens of one batch item, for some heads."""

    def __init__(self, item: int, heads: slice, runs: Runs) -> None:
        self.at, self.runs = (slice(item, item + 1), heads), runs

    def of(self, x: TokenTable) -> Tensor:
        return self.runs.of(x.x[self.at])

    def put(self, x: TokenTable, values: Tensor) -> None:
        self.of(x).copy_(values)

    def add(self, x: TokenTable, values: Tensor) -> None:
        self.runs.add(x.x[self.at], values)

    def positions(self) -> Tensor:
        """``(rows, heads or 1, T)`` int32."""
        start, size, rows, step, stride = dataclasses.astuple(self.runs)
        first = torch.arange(rows, dtype=torch.int32)[:, None, None] * step
        return first + (torch.arange(size, dtype=torch.int32) * stride + start)

    def padding(self, padding: Tensor) -> Tensor:
        """``padding (Nk,)`` of these keys, ``(rows, heads or 1, 1, T)``."""
        view = self.runs.of(padding[None, None])[:, :, None]
        return view if self.runs.stride == 1 else view.contiguous()


class _Gathered(Side):
    """Tokens at the positions ``listed (rows, T, heads or 1)`` of one batch item, for some heads. Empty slots are -1."""

    copies = True

    def __init__(self, item: int, chunk: Chunk, listed: Tensor) -> None:
        self.item, self.heads, self.listed, self.holes = item, chunk.heads, listed, chunk.holes
        self.indices: dict[tuple[int, ...], Tensor] = {}
        """Strides of a :class:`TokenTable` -> the tokens' indices into it, ``(rows · T · heads,)``."""

    def index(self, x: TokenTable) -> Tensor:
        if x.steps not in self.indices:
            by_item, by_head, by_token = x.steps
            offset = torch.arange(self.heads.start, self.heads.stop) * by_head + self.item * by_item
            self.indices[x.steps] = (self.listed.clamp(min=0) * by_token + offset).flatten()
        return self.indices[x.steps]

    def of(self, x: TokenTable) -> Tensor:
        """The tokens. Empty slots hold an arbitrary token, and their log-sum-exp is so large that their weights are 0."""
        index = self.index(x)
        flat = x.scratch.take(x.name, (len(index), *x.x.shape[3:]), x.x)
        torch.index_select(x.table, 0, index, out=flat)
        tokens = flat.view(*self.listed.shape[:2], self.heads.stop - self.heads.start, *x.x.shape[3:])
        if self.holes and x.name == "lse":
            tokens.masked_fill_(self.listed < 0, -MASKED)
        return tokens.transpose(1, 2)

    def put(self, x: TokenTable, values: Tensor) -> None:
        index, values = self.index(x), values.transpose(1, 2).reshape(-1, *x.x.shape[3:])
        if self.holes:
            filled = (self.listed >= 0).expand(-1, -1, self.heads.stop - self.heads.start).flatten()
            index, values = index[filled], values[filled]
        x.table.index_copy_(0, index, values)

    def add(self, x: TokenTable, values: Tensor) -> None:
        x.table.index_add_(0, self.index(x), values.to(x.x.dtype).transpose(1, 2).reshape(-1, x.width))

    def positions(self) -> Tensor:
        return self.listed.transpose(1, 2).to(torch.int32)

    def padding(self, padding: Tensor) -> Tensor:
        return padding[self.listed.clamp(min=0)].transpose(1, 2)[:, :, None].contiguous()


class _Tile(Scope):
    """One tile, with all batch items."""

    def __init__(self, source: Tiles, parts: Iterator[Part]) -> None:
        super().__init__(parts)
        self.source = source

    def read(self, name: str, x: Tensor) -> TokenTable:
        return self.source.table(name, x)

    into = read


@source
class Tiles(Source):
    """Attention over the union of the tiles' pairs.

    - fixed: key mask ``(B, Nk)`` bool, or None; then the queries of all tiles, their keys, and their biases or None, as in
      :class:`hf_longattn.engines.call.GatherTile`.
    - numbers: four per tile, see :func:`flat_rules`.
    """

    name = "tiles"
    may_see_nothing = True

    def read_arguments(self, learned: Sequence[Tensor], fixed: Sequence[Tensor | None], numbers: Sequence[int]) -> None:
        self.key_mask, *lists = fixed
        count = len(numbers) // 4
        rules = [Rules(*numbers[at : at + 4]) for at in range(0, len(numbers), 4)]
        lists_of = lists[:count], lists[count : 2 * count], lists[2 * count :], rules
        self.tiles = [TileSpec(*tile) for tile in zip(*lists_of, strict=True)]  # type: ignore[arg-type]
        self.tables: dict[str, TokenTable] = {}
        self.scratch = Scratch()

    def table(self, name: str, x: Tensor) -> TokenTable:
        if name not in self.tables:
            self.tables[name] = TokenTable(name, x, self.scratch)
        return self.tables[name]

    def prepare(self, out: Tensor, lse: Tensor) -> None:
        first = layout(self.tiles[0], self.q.shape[1], self.q.shape[2], BACKWARD_LIMITS if self.dropout else FORWARD_LIMITS)
        if self.key_mask is not None or not first.complete:
            out.zero_()
            lse.fill_(MASKED)

    def sums(self) -> list[Tensor]:
        """Sums of gradients, stored head by head if keys differ by head. Random additions then touch nearby memory."""
        if any(tile.keys.shape[1] > 1 for tile in self.tiles):
            return [torch.zeros(x.shape, dtype=self.dtype) for x in (self.q, self.k, self.v)]
        return super().sums()

    def scopes(self, backward: bool) -> Iterator[Scope]:
        limits = BACKWARD_LIMITS if backward or self.dropout else FORWARD_LIMITS
        for number, tile in enumerate(self.tiles):
            yield _Tile(self, self.parts(tile, limits, merges=number > 0))

    def parts(self, tile: TileSpec, limits: Limits, merges: bool) -> Iterator[Part]:
        """The parts of one tile. Parts whose keys are all padding are skipped."""
        plan, place = layout(tile, self.q.shape[1], self.q.shape[2], limits), 0
        for item in range(len(self.q)):
            padding = padding_of(self.key_mask, item, self.dtype)
            for chunk in plan.of(item):
                queries = side(tile.queries, item, chunk, chunk.slots, chunk.queries)
                keys = side(tile.keys, item, chunk, slice(None), chunk.keys)
                hidden = None if padding is None else keys.padding(padding)
                if hidden is not None and not bool(hidden.any()):
                    hidden = None
                elif hidden is not None and bool(hidden.all()):
                    continue
                mask = chunk_mask(tile, item, chunk, queries, keys, self.dtype)
                mask = hidden if mask is None else mask if hidden is None else mask + hidden
                yield Part(queries, keys, mask, (place,), merges)
                place += 1


def side(index: Tensor, item: int, chunk: Chunk, slots: slice, runs: Runs | None) -> _Viewed | _Gathered:
    """The queries or the keys of a chunk."""
    if runs is not None:
        return _Viewed(item, chunk.heads, runs)
    heads = chunk.heads if index.shape[1] > 1 else slice(None)
    return _Gathered(item, chunk, index[item % index.shape[0], heads, chunk.rows, slots].permute(1, 2, 0))


def chunk_mask(
    spec: TileSpec, item: int, chunk: Chunk, of_queries: _Viewed | _Gathered, of_keys: _Viewed | _Gathered, dtype: torch.dtype
) -> Tensor | None:
    """The mask of a call, broadcastable to ``(rows, heads, Tq, Tk)``, or None where every pair is visible."""
    if chunk.need == NO_MASK:
        return None
    q_run, k_run = chunk.queries, chunk.keys
    single = chunk.need == KEY_MASK
    if q_run is not None and k_run is not None and spec.bias is None:
        q_size = 1 if single else q_run.size
        if (k_run.rows == 1 or q_run.step == k_run.step) and q_size * k_run.size <= MAX_SHARED_CELLS:
            return relative_mask(q_run.start - k_run.start, q_size, q_run.stride, k_run.size, k_run.stride, spec.rules, dtype)
    queries, keys = of_queries.positions(), of_keys.positions()
    if single:  # all queries of a row see the same keys; amax finds one that is not an empty slot (-1)
        queries = queries.amax(-1, keepdim=True)
    seen = _seen(queries, keys, spec.rules)
    if spec.bias is not None:
        bias = _bias(spec.bias, item, chunk, single)
        if bias.dtype == torch.bool:
            seen = seen & bias
        else:
            return bias.to(dtype).clamp(min=MASKED).masked_fill(~seen, MASKED).contiguous()
    return additive_mask(~seen, dtype)


def relative_mask(shift: int, q_size: int, q_stride: int, k_size: int, k_stride: int, rules: Rules, dtype: torch.dtype) -> Tensor:
    """The mask ``(1, 1, Tq, Tk)`` of rows whose first query is ``shift`` positions after the first key. Shared, so read-only."""

    def make() -> Tensor:
        queries, keys = (
            torch.arange(first, first + n * step, step, dtype=torch.int32)[None, None]
            for first, n, step in ((shift + POSITION_OFFSET, q_size, q_stride), (POSITION_OFFSET, k_size, k_stride))
        )
        return additive_mask(~_seen(queries, keys, rules), dtype)

    return BYTE_CACHE.get(("relative mask", shift, q_size, q_stride, k_size, k_stride, rules, dtype), make)


def _seen(queries: Tensor, keys: Tensor, rules: Rules) -> Tensor:
    distance = queries[..., :, None] - keys[..., None, :]
    seen = (distance >= rules.low) & (keys >= 0)[..., None, :]
    seen &= distance <= rules.high
    if rules.hidden_low <= rules.hidden_high:
        seen &= (distance < rules.hidden_low) | (distance > rules.hidden_high)
    return seen


def _bias(bias: Tensor, item: int, chunk: Chunk, single: bool) -> Tensor:
    """The tile's bias for a chunk, ``(rows or 1, heads or 1, Tq or 1, Tk)``."""
    slots = slice(0, 1) if single else chunk.slots
    heads, rows, slots = (s if n > 1 else slice(None) for n, s in zip(bias.shape[1:4], (chunk.heads, chunk.rows, slots), strict=True))
    return bias[item % bias.shape[0], heads, rows, slots, chunk.key_slots].transpose(0, 1)
