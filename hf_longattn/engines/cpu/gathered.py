"""The path ``cpu-gathered``: tiles by PyTorch's fused CPU kernel, in calls planned by :mod:`.tile_layout`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...naming import OPERATORS
from ..common.byte_cache import BYTE_CACHE
from ..common.call import GatherTile
from ..common.context import DispatchContext
from ..common.derivatives import first_derivatives_only, one_gradient_at_a_time
from .dropout import Dropout, drops_in_tiles, part_backward, part_forward
from .flash import (
    MASKED,
    additive_mask,
    empty_results,
    mask_dtype,
    merge_into,
    padding_of,
    token_major,
    why_not_tiles,
    zero_unseen,
)
from .tile_layout import KEY_MASK, NO_MASK, POSITION_OFFSET, Chunk, Layout, Limits, Rules, StridedRun, TileSpec, layout

MAX_SHARED_CELLS = 1 << 17
"""Maximum entries of a cached mask."""


def why_not(context: DispatchContext) -> str | None:
    """Why this path does not run, as a clause. ``None`` if it may run."""
    return why_not_tiles(context, drops=drops_in_tiles(context))


class Side:
    """The queries or the keys of a kernel call: a run, or positions ``listed (rows, T, heads or 1)``. Empty slots are -1."""

    def __init__(self, run: StridedRun | None, index: Tensor, item: int, chunk: Chunk, slots: slice) -> None:
        self.run, self.rows = run, chunk.rows.stop - chunk.rows.start
        self.indices: dict[tuple[int, ...], Tensor] = {}
        """Indices of the listed positions into a :class:`TokenTable`, by the strides of the table."""
        if run is None:
            heads = chunk.heads if index.shape[1] > 1 else slice(None)
            self.listed = index[item % index.shape[0], heads, chunk.rows, slots].permute(1, 2, 0)

    def positions(self) -> Tensor:
        """``(rows, heads or 1, T)`` int32."""
        if self.run is None:
            return self.listed.transpose(1, 2).to(torch.int32)
        rows = torch.arange(self.rows, dtype=torch.int32)[:, None, None] * self.run.step
        return rows + (torch.arange(self.run.size, dtype=torch.int32) * self.run.stride + self.run.start)

    def of(self, padding: Tensor) -> Tensor:
        """``padding (Nk,)`` at these positions, ``(rows, heads or 1, 1, T)``."""
        if self.run is None:
            return padding[self.listed.clamp(min=0)].transpose(1, 2)[:, :, None].contiguous()
        start, step, stride, size, _ = self.run
        view = padding.as_strided((self.rows, 1, 1, size), (step, 0, 0, stride), start)
        return view if stride == 1 else view.contiguous()


class KernelCall:
    """One kernel call: a chunk of one batch item, its tokens and its mask."""

    def __init__(self, spec: TileSpec, item: int, chunk: Chunk) -> None:
        self.item, self.chunk = item, chunk
        self.queries = Side(chunk.queries, spec.queries, item, chunk, chunk.slots)
        self.keys = Side(chunk.keys, spec.keys, item, chunk, slice(None))
        self.mask: Tensor | None = None

    @property
    def heads(self) -> int:
        return self.chunk.heads.stop - self.chunk.heads.start

    def holes(self) -> Tensor:
        """The empty slots of listed queries, ``(rows, T, heads or 1)``."""
        return self.queries.listed < 0


def calls(spec: TileSpec, plan: Layout, q: Tensor, key_mask: Tensor | None) -> Iterator[KernelCall]:
    """The calls of one tile. Calls over padding only are skipped."""
    dtype = mask_dtype(q)
    for item in range(q.shape[0]):
        padding = padding_of(key_mask, item, dtype)
        for chunk in plan.of(item):
            call = KernelCall(spec, item, chunk)
            hidden = None if padding is None else call.keys.of(padding)
            if hidden is not None and not bool(hidden.any()):
                hidden = None
            elif hidden is not None and bool(hidden.all()):
                continue
            mask = chunk_mask(spec, call, dtype)
            call.mask = hidden if mask is None else mask if hidden is None else mask + hidden
            yield call


def chunk_mask(spec: TileSpec, call: KernelCall, dtype: torch.dtype) -> Tensor | None:
    """The mask of a call, broadcastable to ``(rows, heads, Tq, Tk)``, or None where every pair is visible."""
    chunk = call.chunk
    if chunk.need == NO_MASK:
        return None
    q_run, k_run = chunk.queries, chunk.keys
    single = chunk.need == KEY_MASK
    if q_run is not None and k_run is not None and spec.bias is None:
        q_size = 1 if single else q_run.size
        if (call.keys.rows == 1 or q_run.step == k_run.step) and q_size * k_run.size <= MAX_SHARED_CELLS:
            return relative_mask(q_run.start - k_run.start, q_size, q_run.stride, k_run.size, k_run.stride, spec.rules, dtype)
    queries, keys = call.queries.positions(), call.keys.positions()
    if single:  # all queries of a row see the same keys: any of them will do
        queries = queries.amax(-1, keepdim=True)
    seen = _seen(queries, keys, spec.rules)
    if spec.bias is not None:
        bias = _bias(spec.bias, call.item, chunk, single)
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
    if rules.left_out[0] <= rules.left_out[1]:
        seen &= (distance < rules.left_out[0]) | (distance > rules.left_out[1])
    return seen


def _bias(bias: Tensor, item: int, chunk: Chunk, single: bool) -> Tensor:
    """The tile's bias for a chunk, ``(rows or 1, heads or 1, Tq or 1, Tk)``."""
    first = chunk.keys.slot if chunk.keys is not None else 0
    size = chunk.keys.size if chunk.keys is not None else bias.shape[-1]
    slots = slice(0, 1) if single else chunk.slots
    heads, rows, slots = (s if n > 1 else slice(None) for n, s in zip(bias.shape[1:4], (chunk.heads, chunk.rows, slots), strict=True))
    return bias[item % bias.shape[0], heads, rows, slots, first : first + size].transpose(0, 1)


class Scratch:
    """Buffers reused by all kernel calls, by name."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = like.new_empty(size)
        return buffer[:size].view(shape)


class TokenTable:
    """``x (B, H, N)`` or ``(B, H, N, D)``, from which calls read tokens as ``(rows, heads, T, …)``."""

    def __init__(self, x: Tensor) -> None:
        self.width = math.prod(x.shape[3:])
        uneven = any(n > 1 and step % self.width for n, step in zip(x.shape[:3], x.stride(), strict=False))
        if uneven or (x.dim() == 4 and x.stride(3) != 1):
            x = x.contiguous()
        self.x = x
        self.steps = tuple(step // self.width for step in x.stride()[:3])
        rows = 1 + sum((n - 1) * step for n, step in zip(x.shape[:3], self.steps, strict=True))
        self.table = x.as_strided((rows, *x.shape[3:]), (self.width, 1)[: x.dim() - 2], x.storage_offset())

    def index(self, call: KernelCall, side: Side) -> Tensor:
        """Table indices of a call's listed tokens, ``(rows · T · heads,)``, ordered as results are stored."""
        if self.steps not in side.indices:
            by_item, by_head, by_token = self.steps
            offset = torch.arange(call.chunk.heads.start, call.chunk.heads.stop) * by_head + call.item * by_item
            side.indices[self.steps] = (side.listed.clamp(min=0) * by_token + offset).flatten()
        return side.indices[self.steps]

    def view(self, item: int, chunk: Chunk, run: StridedRun) -> Tensor:
        """The tokens of ``run`` for every row and head of a chunk."""
        x = self.x[item, chunk.heads]
        by_head, by_token, *inner = x.stride()
        shape = (chunk.rows.stop - chunk.rows.start, x.shape[0], run.size, *x.shape[2:])
        return x.as_strided(shape, (run.step * by_token, by_head, run.stride * by_token, *inner), x.storage_offset() + run.start * by_token)

    def read(self, call: KernelCall, side: Side, scratch: Scratch, name: str) -> Tensor:
        """The tokens of a call; empty slots hold an arbitrary token."""
        if side.run is not None:
            return self.view(call.item, call.chunk, side.run)
        index = self.index(call, side)
        flat = scratch.take(name, (len(index), *self.x.shape[3:]), self.x)
        torch.index_select(self.table, 0, index, out=flat)
        return flat.view(*side.listed.shape[:2], call.heads, *self.x.shape[3:]).transpose(1, 2)

    def add(self, call: KernelCall, side: Side, more: Tensor) -> None:
        """Add ``more (rows, heads, T, D)`` to the tokens of a call; a token may occur several times."""
        more, run = more.to(self.x.dtype), side.run
        if run is None:
            self.table.index_add_(0, self.index(call, side), more.transpose(1, 2).reshape(-1, self.width))
            return
        rows = more.shape[0]
        if rows > 1 and run.step == 0:
            more, rows = more.sum(0, keepdim=True), 1
        if rows == 1 or (rows - 1) * run.step < run.stride or run.step % run.stride == 0:
            self._add_stripes(call.item, call.chunk, run, more)
        else:
            for row in range(rows):
                self._add_stripes(call.item, call.chunk, run.row(row), more[row : row + 1])

    def _add_stripes(self, item: int, chunk: Chunk, run: StridedRun, more: Tensor) -> None:
        """Add rows in stripes of one step. Rows overlap only where they are longer than a step."""
        chunk = chunk._replace(rows=slice(0, more.shape[0]))
        step = run.step // run.stride if more.shape[0] > 1 and run.step % run.stride == 0 else run.size
        for at in range(0, run.size, step):
            size = min(step, run.size - at)
            self.view(item, chunk, run.part(at, size)).add_(more[:, :, at : at + size])


FORWARD_LIMITS = Limits(queries=24576, keys=4096, viewed=1 << 40)
BACKWARD_LIMITS = Limits(queries=3072, keys=4096, viewed=24576)
"""Limits that keep a call's results in the cache. The next call reuses their memory."""


@torch.library.custom_op(f"{OPERATORS}::cpu_gathered", mutates_args=(), device_types="cpu")
def cpu_gathered(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None,
    queries: Sequence[Tensor], keys: Sequence[Tensor], biases: Sequence[Tensor | None], rules: Sequence[int], scale: float,
    dropout: float, seed: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention over the union of the tiles' pairs.

    Args:
        q, k, v: ``(B, H, Nq, D)``, ``(B, H, Nk, D)``.
        key_mask: ``(B, Nk)`` bool, True = real token, or None.
        queries, keys, biases: one per tile, as in :class:`hf_longattn.engines.common.call.GatherTile`.
        rules: four numbers per tile, see :func:`flat_rules`.
        dropout, seed: dropout of the weights, see :class:`.dropout.Dropout`.
    Returns:
        output ``(B, H, Nq, D)``, stored token-major, and log-sum-exp ``(B, H, Nq)``, 0 where a query sees nothing.
    """
    out, lse = empty_results(q)
    specs, drop = _specs(queries, keys, biases, rules), Dropout.of(dropout, seed)
    layouts = [layout(spec, q.shape[1], q.shape[2], BACKWARD_LIMITS if drop else FORWARD_LIMITS) for spec in specs]
    if key_mask is not None or not (layouts and layouts[0].complete):
        out.zero_()
        lse.fill_(MASKED)
    scratch, into = Scratch(), (TokenTable(out), TokenTable(lse))
    of_q, of_k, of_v = TokenTable(q), TokenTable(k), TokenTable(v)
    for number, (spec, plan) in enumerate(zip(specs, layouts, strict=True)):
        for place, call in enumerate(calls(spec, plan, q, key_mask)):
            read_k, read_v = (x.read(call, call.keys, scratch, name) for x, name in ((of_k, "k"), (of_v, "v")))
            inputs = of_q.read(call, call.queries, scratch, "q"), read_k, read_v
            part, part_lse = part_forward(drop, (number, place), *inputs, mask=call.mask, scale=scale)
            _write(into, call, part, part_lse, merge=number > 0, scratch=scratch)
    zero_unseen(out, lse)
    return out, lse


def flat_rules(tiles: Sequence[GatherTile]) -> list[int]:
    """The rules of all tiles as the operator takes them: four numbers per tile."""
    return [number for low, high, left_out in map(Rules.of, tiles) for number in (low, high, *left_out)]


def _specs(queries: Sequence[Tensor], keys: Sequence[Tensor], biases: Sequence[Tensor | None], numbers: Sequence[int]) -> list[TileSpec]:
    rules = [Rules(low, high, (a, b)) for low, high, a, b in zip(*(iter(numbers),) * 4, strict=True)]
    return [TileSpec(*part) for part in zip(queries, keys, biases, rules, strict=True)]


def _write(into: tuple[TokenTable, TokenTable], call: KernelCall, part: Tensor, part_lse: Tensor, merge: bool, scratch: Scratch) -> None:
    """Write the results of a call, or merge them with those of earlier tiles."""
    outs, lses = into
    if call.chunk.queries is not None:
        out, lse = (x.view(call.item, call.chunk, call.chunk.queries) for x in into)
        if merge:
            merge_into(out, lse, part, part_lse)
        else:
            out.copy_(part)
            lse.copy_(part_lse)
        return
    index = outs.index(call, call.queries)
    part, part_lse = part.transpose(1, 2).reshape(-1, part.shape[-1]), part_lse.transpose(1, 2).reshape(-1)
    if call.chunk.holes:
        listed = ~call.holes().expand(-1, -1, call.heads).flatten()
        index, part, part_lse = index[listed], part[listed], part_lse[listed]
    if merge:
        out = torch.index_select(outs.table, 0, index, out=scratch.take("out", tuple(part.shape), part))
        lse = lses.table[index]
        merge_into(out, lse, part, part_lse)
        part, part_lse = out, lse
    outs.table.index_copy_(0, index, part)
    lses.table.index_copy_(0, index, part_lse)


@torch.library.custom_op(f"{OPERATORS}::cpu_gathered_backward", mutates_args=(), device_types="cpu")
def cpu_gathered_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, key_mask: Tensor | None,
    queries: Sequence[Tensor], keys: Sequence[Tensor], biases: Sequence[Tensor | None], rules: Sequence[int], scale: float,
    dropout: float, seed: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of :func:`cpu_gathered` with respect to q, k, v, accumulated in float32 at least."""
    specs, drop = _specs(queries, keys, biases, rules), Dropout.of(dropout, seed)
    sums = [TokenTable(_sum_of(x, any(spec.keys.shape[1] > 1 for spec in specs))) for x in (q, k, v)]
    scratch = Scratch()
    inputs = {"grad": grad, "q": q, "k": k, "v": v, "out": out, "lse": lse}
    tokens = {name: TokenTable(x) for name, x in inputs.items()}
    for number, spec in enumerate(specs):
        for place, call in enumerate(calls(spec, layout(spec, q.shape[1], q.shape[2], BACKWARD_LIMITS), q, key_mask)):
            at = [x.read(call, call.keys if name in ("k", "v") else call.queries, scratch, name) for name, x in tokens.items()]
            if call.chunk.holes:  # so that their weights exp(score - lse) are 0
                at[-1].masked_fill_(call.holes().transpose(1, 2), -MASKED)
            parts = part_backward(drop, (number, place), *at, mask=call.mask, scale=scale)
            for total, side, part in zip(sums, (call.queries, call.keys, call.keys), parts, strict=True):
                total.add(call, side, part)
    dq, dk, dv = (y.copy_(total.x) for y, total in zip(token_major(q.dtype, q, k, v), sums, strict=True))
    return dq, dk, dv


def _sum_of(x: Tensor, per_head: bool) -> Tensor:
    """A zero accumulator ``(B, H, N, D)``, stored so that random additions touch nearby memory."""
    if per_head:
        return torch.zeros(x.shape, dtype=mask_dtype(x))
    return token_major(mask_dtype(x), x)[0].zero_()


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, queries, keys, biases, *ctx.settings = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.count = len(queries)
    ctx.save_for_backward(q, k, v, *output, key_mask, *queries, *keys, *biases)


@one_gradient_at_a_time()
def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    q, k, v, out, lse, key_mask, *lists = ctx.saved_tensors
    n = ctx.count
    queries, keys, biases = lists[:n], lists[n : 2 * n], lists[2 * n :]
    dq, dk, dv = cpu_gathered_backward(grad, q, k, v, out, lse, key_mask, queries, keys, biases, *ctx.settings)
    # PyTorch expects gradients for a list of tensors, but a single None for a list that contains None.
    no_biases = None if any(bias is None for bias in biases) else [None] * n
    return first_derivatives_only((dq, dk, dv, None, [None] * n, [None] * n, no_biases, *[None] * 4))


cpu_gathered.register_fake(lambda q, *_: empty_results(q))
cpu_gathered_backward.register_fake(lambda _grad, q, k, v, *_: token_major(q.dtype, q, k, v))
cpu_gathered.register_autograd(_backward, setup_context=_setup_context)
