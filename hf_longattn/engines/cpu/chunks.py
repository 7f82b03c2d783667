"""CPU engine for chunks of tokens sorted by bucket (LSH with shared queries and keys): the fused flash kernel on sorted copies.

In every round the tokens of a head are copied in the order of their buckets. A chunk's queries are then one slice, its keys another, and
all chunks together one strided view. Queries and keys are the same tokens in the same order, so one mask hides the query's own key in every
chunk. The rounds merge by log-sum-exp in one pass.

The gathered engine takes 2.0-2.3 times as long for the forward pass and 1.6-1.8 times for forward and backward (1,024 to 4,096 tokens,
4 rounds, 4 to 12 heads of 64, one CPU thread). With it, hashing in its published form would be slower than full attention of 2,048 tokens:
148 ms against 139 ms (12 heads); by this path it takes 76 ms.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...naming import OPERATORS
from ..common.call import AttentionCall, inverse_permutation
from ..common.dense import same_dtype
from .flash import MASKED, additive_mask, empty_results, flash, flash_backward, mask_dtype, merge_rows, register, stable_order, token_major


def chunk_attention(q: Tensor, k: Tensor, v: Tensor, buckets: Tensor, size: int, call: AttentionCall, *, before: int, after: int) -> Tensor:
    """The output of :func:`cpu_chunks`, ``(B, H, N, D)``, with the padding and the scale of a call."""
    q, k, v = same_dtype(q, k, v)
    return cpu_chunks(q, k, v, buckets, call.key_mask, size, before, after, call.scale_for(q.shape[-1]))[0]


class _ChunkRange(NamedTuple):
    """Chunks ``first … last - 1`` of one round, and the mask that they share."""

    first: int
    last: int
    mask: Tensor


class _Chunks:
    """The chunks of the ``count`` sorted tokens of a sequence, which are the same for all heads and rounds."""

    def __init__(self, count: int, size: int, before: int, after: int, dtype: torch.dtype) -> None:
        self.count, self.size = count, min(size, count)
        self.chunks = -(-count // self.size)
        self.near = min(1 + before + after, self.chunks)
        self.width = self.near * self.size  # keys that a chunk sees
        # The chunks in order, repeated at the ends so that windows of ``near`` of them close the circle.
        self.circle = (torch.arange(self.chunks + self.near - 1) - before) % self.chunks
        self.places = (self.circle[:, None] * self.size + torch.arange(self.size)).flatten()
        windows = self.places.unfold(0, self.width, self.size)
        own_places = torch.arange(self.size) + before % self.chunks * self.size
        self_mask = additive_mask(own_places[:, None] == torch.arange(self.width), dtype)[None, None]
        self.rows: list[_ChunkRange] = []
        unfilled = windows >= count
        first = 0
        for partly_filled, stretch in itertools.groupby(unfilled.any(1).tolist()):
            last = first + len(list(stretch))
            hidden = additive_mask(unfilled[first:last, None, None], dtype)
            self.rows.append(_ChunkRange(first, last, (self_mask + hidden).clamp_(min=MASKED) if partly_filled else self_mask))
            first = last

    def filled(self, order: Tensor) -> Tensor:
        """``order (R, n)`` padded with an arbitrary token, ``(R, chunks · size)``."""
        return F.pad(order, (0, self.chunks * self.size - self.count))

    def queries(self, x: Tensor, rows: _ChunkRange) -> Tensor:
        """The chunks of ``x (chunks · size, …)``, ``(rows, 1, size, …)``."""
        return x[rows.first * self.size : rows.last * self.size].unflatten(0, (-1, 1, self.size))

    def windows(self, x: Tensor, rows: _ChunkRange) -> Tensor:
        """The tokens of ``x ((chunks + near - 1) · size, D)`` that the chunks see, overlapping views ``(rows, 1, width, D)``."""
        return x[rows.first * self.size :].as_strided(
            (rows.last - rows.first, 1, self.width, x.shape[1]),
            (self.size * x.stride(0), 0, x.stride(0), 1),
            x.storage_offset() + rows.first * self.size * x.stride(0),
        )


class _Head(NamedTuple):
    """One head of one batch item."""

    at: tuple[int, int]
    tokens: Tensor | None
    """The real tokens ``(n,)``; ``None`` where all are."""
    order: Tensor
    """``(R, n)``: the real token at each place."""
    row: Tensor
    """``(n, R)``: the index of a real token's results among those of all rounds."""
    cut: _Chunks

    def take(self, x: Tensor) -> Tensor:
        return x[self.at].contiguous()

    def put(self, into: Tensor, x: Tensor) -> None:
        """Write ``x (n, …)`` to the places of the real tokens."""
        if self.tokens is None:
            into[self.at].copy_(x)
        else:
            into[self.at][self.tokens] = x.to(into.dtype)


def _heads(buckets: Tensor, key_mask: Tensor | None, size: int, before: int, after: int, dtype: torch.dtype) -> Iterator[_Head]:
    unpadded: _Chunks | None = None
    most = int(buckets.max())
    for item in range(buckets.shape[0]):
        tokens, cut, of_item = None, unpadded, buckets[item]
        if key_mask is not None and not bool(key_mask[item].all()):
            tokens = key_mask[item].nonzero()[:, 0]
            if not len(tokens):
                continue
            of_item = of_item.index_select(-1, tokens)
            cut = _Chunks(len(tokens), size, before, after, dtype)
        elif cut is None:
            cut = unpadded = _Chunks(buckets.shape[-1], size, before, after, dtype)
        assert cut is not None
        for head, order in enumerate(stable_order(of_item, most)):
            row = inverse_permutation(order).add_(torch.arange(len(order))[:, None] * (cut.chunks * cut.size))
            yield _Head((item, head), tokens, order if tokens is None else tokens[order], row.t().contiguous(), cut)


@torch.library.custom_op(f"{OPERATORS}::cpu_chunks", mutates_args=(), device_types="cpu")
def cpu_chunks(
    q: Tensor, k: Tensor, v: Tensor, buckets: Tensor, key_mask: Tensor | None, size: int, before: int, after: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of every token to the others in its chunk and the neighbouring chunks, in every round; a pair counts once per round.

    Args:
        q, k, v: ``(B, H, N, D)``; k may be a rescaled q, since a token sees itself only if it sees nothing else.
        buckets: ``(B, H, R, N)`` int64 from 0 on; the real tokens of each round are sorted by (bucket, position).
        key_mask: ``(B, N)`` bool, True = real token, or None.
        size: tokens in a chunk of that order.
        before, after: chunks seen before and after the query's, in a circle, none twice.
    Returns:
        output ``(B, H, N, D)``, stored token-major, and log-sum-exp ``(B, H, N)``, -:data:`MASKED` where a token sees only itself. Rows of
        padding are zeros.
    """
    out, lse = empty_results(q)
    if key_mask is not None:
        out.zero_()
        lse.zero_()
    for item in _heads(buckets, key_mask, size, before, after, mask_dtype(q)):
        of_q, of_k, of_v = (item.take(x) for x in (q, k, v))
        parts, lses = [], []
        for order in item.cut.filled(item.order):
            keys = order[item.cut.places]
            queries, keys, values = of_q.index_select(0, order), of_k.index_select(0, keys), of_v.index_select(0, keys)
            for rows in item.cut.rows:
                seen = (item.cut.windows(x, rows) for x in (keys, values))
                part, part_lse = flash(item.cut.queries(queries, rows), *seen, attn_mask=rows.mask, scale=scale)
                parts.append(part.reshape(-1, part.shape[-1]))
                lses.append(part_lse.flatten())
        merged, total = merge_rows(parts, lses, item.row)
        alone = total <= MASKED / 2
        if bool(alone.any()):
            own_values = of_v if item.tokens is None else of_v[item.tokens]
            merged = torch.where(alone[:, None], own_values.to(merged.dtype), merged)
            total = total.masked_fill(alone, -MASKED)
        item.put(out, merged)
        item.put(lse, total)
    return out, lse


@torch.library.custom_op(f"{OPERATORS}::cpu_chunks_backward", mutates_args=(), device_types="cpu")
def cpu_chunks_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, buckets: Tensor, key_mask: Tensor | None,
    size: int, before: int, after: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of :func:`cpu_chunks` with respect to q, k, v, accumulated in float32 at least."""
    dq, dk, dv = token_major(q.dtype, q, k, v)
    if key_mask is not None:
        for x in (dq, dk, dv):
            x.zero_()
    exact = mask_dtype(q)
    for item in _heads(buckets, key_mask, size, before, after, exact):
        cut = item.cut
        of_grad, of_q, of_out, of_lse, of_k, of_v = (item.take(x) for x in (grad, q, out, lse, k, v))
        sums: tuple[list[Tensor], ...] = ([], [], [])
        for order in cut.filled(item.order):
            keys = order[cut.places]
            by_query = [x.index_select(0, order) for x in (of_grad, of_q, of_out, of_lse)]
            by_query[3][cut.count :] = -MASKED  # a weight of exp(score - lse) = 0
            by_key = [x.index_select(0, keys) for x in (of_k, of_v)]
            totals = [torch.zeros(len(cut.circle), cut.size, q.shape[-1], dtype=exact) for _ in by_key]
            for rows in cut.rows:
                at_grad, at_q, at_out, at_lse = (cut.queries(x, rows) for x in by_query)
                seen = (cut.windows(x, rows) for x in by_key)
                parts = flash_backward(at_grad, at_q, *seen, at_out, at_lse, 0.0, False, attn_mask=rows.mask, scale=scale)
                sums[0].append(parts[0].reshape(-1, q.shape[-1]))
                for total, part in zip(totals, parts[1:], strict=True):
                    for t, chunk in enumerate(part[:, 0].unflatten(1, (cut.near, cut.size)).unbind(1)):
                        total[rows.first + t : rows.last + t].add_(chunk)
            for of_rounds, total in zip(sums[1:], totals, strict=True):
                folded = torch.zeros(cut.chunks, *total.shape[1:], dtype=exact).index_add_(0, cut.circle, total)
                of_rounds.append(folded.flatten(0, 1))
        alone = of_lse == -MASKED
        for into, of_rounds in zip((dq, dk, dv), sums, strict=True):
            summed = F.embedding_bag(item.row, torch.cat(of_rounds).to(exact), mode="sum")
            if into is dv and bool(alone.any()):
                itself = of_grad.masked_fill(~alone[:, None], 0)
                summed = summed + (itself if item.tokens is None else itself[item.tokens])
            item.put(into, summed)
    return dq, dk, dv


register(cpu_chunks, cpu_chunks_backward, tensors=2)
