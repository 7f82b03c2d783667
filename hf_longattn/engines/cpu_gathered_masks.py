"""The calls of the CPU engine with their additive masks: made from positions where a call needs one, shared where the layout repeats."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .byte_cache import KEPT
from .cpu_gathered_layout import KEYS, WHOLE, Chunk, Layout, Rules, Run, Spec
from .cpu_layout import MASKED, mask_dtype

SHARED = 1 << 17
"""Masks of at most so many entries are kept for the next call."""


class Call:
    """One call of the kernel: a chunk of one batch item, the listed positions of its tokens, and its mask."""

    def __init__(self, spec: Spec, item: int, chunk: Chunk) -> None:
        self.item, self.chunk = item, chunk
        self.heads = chunk.heads.stop - chunk.heads.start
        self.queries = None if chunk.queries is not None else _listed(spec.queries, item, chunk, chunk.slots)
        self.keys = None if chunk.keys is not None else _listed(spec.keys, item, chunk, slice(None))
        self.mask: Tensor | None = None
        self.places: dict[tuple, Tensor] = {}

    def side(self, name: str) -> tuple[Run | None, Tensor | None]:
        """The ``"queries"`` or ``"keys"`` as a run, or as listed positions ``(rows, T, heads or 1)`` with -1 where empty."""
        return (self.chunk.queries, self.queries) if name == "queries" else (self.chunk.keys, self.keys)


def calls(spec: Spec, plan: Layout, q: Tensor, key_mask: Tensor | None) -> Iterator[Call]:
    """The calls of one part; those that see nothing but padding are left out."""
    dtype = mask_dtype(q)
    for item in range(q.shape[0]):
        padding = None if key_mask is None or bool(key_mask[item].all()) else Padding(key_mask[item], dtype)
        for chunk in plan.of(item):
            call = Call(spec, item, chunk)
            hidden = None if padding is None else padding.of(chunk, call.keys)
            if hidden is not None and not bool(hidden.any()):
                hidden = None
            elif hidden is not None and bool(hidden.all()):
                continue
            mask = chunk_mask(spec, call, dtype)
            call.mask = hidden if mask is None else mask if hidden is None else mask + hidden
            yield call


def _listed(index: Tensor, item: int, chunk: Chunk, slots: slice) -> Tensor:
    """The listed positions of a chunk, ``(rows, T, heads or 1)``; -1 where empty."""
    heads = chunk.heads if index.shape[1] > 1 else slice(None)
    return index[item % index.shape[0], heads, chunk.rows, slots].permute(1, 2, 0)


def chunk_mask(spec: Spec, call: Call, dtype: torch.dtype) -> Tensor | None:
    """The mask of a call, broadcastable to ``(rows, heads, Tq, Tk)``, or None where everything is seen."""
    chunk = call.chunk
    if chunk.need == WHOLE:
        return None
    q_run, k_run = chunk.queries, chunk.keys
    single = chunk.need == KEYS
    if q_run is not None and k_run is not None and spec.bias is None:
        rows = chunk.rows.stop - chunk.rows.start
        q_size = 1 if single else q_run.size
        if (rows == 1 or q_run.step == k_run.step) and q_size * k_run.size <= SHARED:
            return relative_mask(q_run.start - k_run.start, q_size, q_run.stride, k_run.size, k_run.stride, spec.rules, dtype)
    queries = _places(chunk, q_run, call.queries)
    keys = _places(chunk, k_run, call.keys)
    if single:  # the same for all queries of a row: any of them will do
        queries = queries.amax(-1, keepdim=True)
    seen = _seen(queries, keys, spec.rules)
    if spec.bias is not None:
        bias = _bias(spec.bias, call.item, chunk, single)
        if bias.dtype == torch.bool:
            seen = seen & bias
        else:
            return bias.to(dtype).clamp(min=MASKED).masked_fill(~seen, MASKED).contiguous()
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, MASKED)


def relative_mask(shift: int, q_size: int, q_stride: int, k_size: int, k_stride: int, rules: Rules, dtype: torch.dtype) -> Tensor:
    """The mask ``(1, 1, Tq, Tk)`` of all rows whose first query lies ``shift`` after their first key. Shared: never written to."""

    def make() -> Tensor:
        places = (torch.arange(n, dtype=torch.int32)[None, None] * step for n, step in ((q_size, q_stride), (k_size, k_stride)))
        queries, keys = places
        seen = _seen(queries + (shift + FAR_ENOUGH), keys + FAR_ENOUGH, rules)
        return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, MASKED)

    return KEPT.get(("relative mask", shift, q_size, q_stride, k_size, k_stride, rules, dtype), make)


FAR_ENOUGH = 1 << 28
"""Keeps relative positions above 0, where -1 would mean an empty slot."""


def _places(chunk: Chunk, run: Run | None, listed: Tensor | None) -> Tensor:
    """Positions ``(rows, heads or 1, T)`` int32."""
    if run is None:
        assert listed is not None
        return listed.transpose(1, 2).to(torch.int32)
    rows = torch.arange(chunk.rows.stop - chunk.rows.start, dtype=torch.int32)[:, None, None] * run.step
    return rows + (torch.arange(run.size, dtype=torch.int32) * run.stride + run.start)


def _seen(queries: Tensor, keys: Tensor, rules: Rules) -> Tensor:
    distance = queries[..., :, None] - keys[..., None, :]
    seen = (distance >= rules.low) & (keys >= 0)[..., None, :]
    seen &= distance <= rules.high
    if rules.left_out[0] <= rules.left_out[1]:
        seen &= (distance < rules.left_out[0]) | (distance > rules.left_out[1])
    return seen


def _bias(bias: Tensor, item: int, chunk: Chunk, single: bool) -> Tensor:
    """The part's bias for a chunk, ``(rows or 1, heads or 1, Tq or 1, Tk)``."""
    first = chunk.keys.slot if chunk.keys is not None else 0
    size = chunk.keys.size if chunk.keys is not None else bias.shape[-1]
    slots = slice(0, 1) if single else chunk.slots
    heads, rows, slots = (s if n > 1 else slice(None) for n, s in zip(bias.shape[1:4], (chunk.heads, chunk.rows, slots), strict=True))
    return bias[item % bias.shape[0], heads, rows, slots, first : first + size].transpose(0, 1)


class Padding:
    """The padding of one batch item's keys."""

    def __init__(self, real: Tensor, dtype: torch.dtype) -> None:
        self.hidden = torch.zeros(len(real), dtype=dtype).masked_fill_(~real, MASKED)

    def of(self, chunk: Chunk, listed_keys: Tensor | None) -> Tensor:
        """The additive mask of a chunk's keys, ``(rows, heads or 1, 1, Tk)``."""
        if chunk.keys is None:
            assert listed_keys is not None
            return self.hidden[listed_keys.clamp(min=0)].transpose(1, 2)[:, :, None].contiguous()
        run, rows = chunk.keys, chunk.rows.stop - chunk.rows.start
        view = self.hidden.as_strided((rows, 1, 1, run.size), (run.step, 0, 0, run.stride), run.start)
        return view if run.stride == 1 else view.contiguous()
