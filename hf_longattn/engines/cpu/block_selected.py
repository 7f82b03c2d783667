"""The path ``cpu-blocks``: each query's own and selected blocks, by PyTorch's fused CPU kernel.

A block of keys is one contiguous slice. The queries of a head are copied in the order of their selected blocks, so the queries of one block
are one slice too. Without causality a query's own block is one more selection. Causal queries attend to their own blocks in separate calls,
on views of queries and keys with one mask. The blocks merge by log-sum-exp.

The tiles of the gathered engine take 1.8 times as long for the forward pass and 1.7 times for forward and backward (2,048 and 8,192 tokens,
4 blocks of 128 per query, 4 heads of 64, one thread).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...naming import OPERATORS
from ..common.byte_cache import BYTE_CACHE
from ..common.call import inverse_permutation
from ..common.context import DispatchContext
from .flash import (
    MASKED,
    empty_results,
    flash,
    flash_backward,
    mask_dtype,
    merge_rows,
    padding_of,
    register,
    stable_order,
    token_major,
    why_not_tiles,
    zero_unseen,
)

MAX_OWN_QUERIES = 4096
"""Maximum queries, over all heads, in one call for own blocks."""


def why_not(context: DispatchContext) -> str | None:
    """Why this path does not run, as a clause. ``None`` if it may run."""
    return why_not_tiles(context)


class _OwnBlocks(NamedTuple):
    """Consecutive blocks whose queries attend to their own block. ``view`` turns ``(H, N, …)`` into ``(blocks, H, size, …)``."""

    first: int
    blocks: int
    size: int
    mask: Tensor

    def view(self, x: Tensor) -> Tensor:
        return x[:, self.first : self.first + self.blocks * self.size].unflatten(1, (self.blocks, self.size)).transpose(0, 1)


class _Visit(NamedTuple):
    """The queries of one head that selected a block."""

    place: slice
    """Where they lie among all selections, sorted by block."""
    keys: slice
    mask: Tensor | None


class _Head(NamedTuple):
    """The selections of one head, sorted by block."""

    queries: Tensor
    """``(N · K)``: the query of each selection."""
    row: Tensor
    """``(N, K)``: the indices of each query's selections in this order."""
    none: int
    """Number of empty selections, which come first."""
    visits: tuple[_Visit, ...]

    def sorted(self, x: Tensor) -> Tensor:
        """``x (N, …)`` at the query of each selection, ``(N · K, …)``."""
        return x.contiguous().index_select(0, self.queries)


@torch.library.custom_op(f"{OPERATORS}::cpu_block_selected", mutates_args=(), device_types="cpu")
def cpu_block_selected(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, chosen: Tensor, block_size: int, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of every query to its own block and its selected blocks.

    Args:
        q, k, v: ``(B, H, N, D)``.
        key_mask: ``(B, N)`` bool, True = real token, or None.
        chosen: ``(B, H, N, K)`` int64, as :func:`hf_longattn.engines.block_selected.block_selected_attention` takes it.
        causal: leave out the keys after the query in its own block.
    Returns:
        output ``(B, H, N, D)``, stored token-major, and log-sum-exp ``(B, H, N)``, 0 where a query sees nothing.
    """
    out, lse = empty_results(q)
    chosen = chosen if causal else _with_own(chosen, block_size)
    for item in range(q.shape[0]):
        padding = padding_of(key_mask, item, mask_dtype(q))
        for blocks in _own_blocks(q.shape[1], q.shape[2], block_size, padding, mask_dtype(q)) if causal else ():
            part, part_lse = flash(*(blocks.view(x[item]) for x in (q, k, v)), attn_mask=blocks.mask, scale=scale)
            blocks.view(out[item]).copy_(part)
            blocks.view(lse[item]).copy_(part_lse)
        for number, head in enumerate(_heads(chosen[item], block_size, padding)):
            of_q, of_k, of_v, of_out, of_lse = (x[item, number] for x in (q, k, v, out, lse))
            _add_chosen(of_q, of_k, of_v, of_out, of_lse, head, causal, scale)
    zero_unseen(out, lse)
    return out, lse


def _add_chosen(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, head: _Head, merge: bool, scale: float) -> None:
    """Attend to the selected blocks of one head. Results overwrite ``out (N, D)`` and ``lse (N,)``, or ``merge`` with them."""
    queries, row = head.sorted(q), head.row
    # One row for every selection, then the earlier results to merge with. Empty selections have the share 0.
    parts, lses = [q.new_zeros(head.none, q.shape[1])], [lse.new_full((head.none,), MASKED)]
    for visit in head.visits:
        keys, values = (x[None, None, visit.keys] for x in (k, v))
        part, part_lse = flash(queries[None, None, visit.place], keys, values, attn_mask=visit.mask, scale=scale)
        parts.append(part[0, 0])
        lses.append(part_lse[0, 0])
    if merge:
        parts.append(out)
        lses.append(lse)
        row = torch.cat([row, torch.arange(row.numel(), row.numel() + len(row))[:, None]], 1)
    for into, merged in zip((out, lse), merge_rows(parts, lses, row), strict=True):
        into.copy_(merged)


def _with_own(chosen: Tensor, size: int) -> Tensor:
    """``chosen (B, H, N, K)`` with every query's own block added, ``(B, H, N, K + 1)``."""
    own_block = torch.arange(chosen.shape[2]) // size
    return torch.cat([chosen, own_block[:, None].expand(*chosen.shape[:3], 1)], -1)


def _own_blocks(heads: int, length: int, size: int, padding: Tensor | None, dtype: torch.dtype) -> Iterator[_OwnBlocks]:
    """Calls of causal queries to their own blocks, as many blocks per call as stay in the cache. An incomplete block comes last."""
    full_blocks, step = length // size, max(1, MAX_OWN_QUERIES // (heads * size))
    stretches = [(at * size, min(step, full_blocks - at), size) for at in range(0, full_blocks, step)]
    if length > full_blocks * size:
        stretches.append((full_blocks * size, 1, length - full_blocks * size))
    for first, count, width in stretches:
        mask = _future(width, dtype)
        hidden = None if padding is None else padding[first : first + count * width].view(count, 1, 1, width)
        if hidden is not None and bool(hidden.any()):
            mask = mask + hidden
        yield _OwnBlocks(first, count, width, mask)


def _future(size: int, dtype: torch.dtype) -> Tensor:
    """The additive mask ``(1, 1, size, size)`` of a causal block; shared, so read-only."""
    return BYTE_CACHE.get(("future", size, dtype), lambda: torch.full((size, size), MASKED, dtype=dtype).triu_(1)[None, None])


def _heads(chosen: Tensor, size: int, padding: Tensor | None) -> Iterator[_Head]:
    """Every head's selections, from ``chosen (H, N, K)`` of one item. Nothing if K = 0."""
    heads, length, choices = chosen.shape
    blocks = -(-length // size)
    by_block = stable_order(chosen.flatten(1), blocks)
    hidden = [False] * blocks
    if padding is not None:
        hidden = F.pad(padding != 0, (0, blocks * size - length)).view(blocks, size).any(1).tolist()
    for head in range(heads) if choices else ():
        order = by_block[head]
        end, *counts = torch.bincount(chosen[head].flatten() + 1, minlength=blocks + 1).tolist()
        none, visits = end, []
        for block, count in enumerate(counts):
            if count:
                keys = slice(block * size, min(length, (block + 1) * size))
                mask = padding[None, None, None, keys] if padding is not None and hidden[block] else None
                visits.append(_Visit(slice(end, end + count), keys, mask))
            end += count
        yield _Head(order // choices, inverse_permutation(order).view(length, choices), none, tuple(visits))


@torch.library.custom_op(f"{OPERATORS}::cpu_block_selected_backward", mutates_args=(), device_types="cpu")
def cpu_block_selected_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, key_mask: Tensor | None, chosen: Tensor,
    block_size: int, causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of :func:`cpu_block_selected` with respect to q, k, v, accumulated in float32 at least."""
    dq, dk, dv = (x.zero_() for x in token_major(mask_dtype(q), q, k, v))
    chosen = chosen if causal else _with_own(chosen, block_size)
    for item in range(q.shape[0]):
        padding = padding_of(key_mask, item, mask_dtype(q))
        for own_blocks in _own_blocks(q.shape[1], q.shape[2], block_size, padding, mask_dtype(q)) if causal else ():
            blocks = [own_blocks.view(x[item]) for x in (grad, q, k, v, out, lse)]
            for total, part in zip((dq, dk, dv), flash_backward(*blocks, 0.0, False, attn_mask=own_blocks.mask, scale=scale), strict=True):
                own_blocks.view(total[item]).add_(part)
        for number, head in enumerate(_heads(chosen[item], block_size, padding)):
            of_grad, of_q, of_out, of_lse = (head.sorted(x[item, number]) for x in (grad, q, out, lse))
            by_choice = [q.new_zeros(head.none, q.shape[3])]
            for visit in head.visits:
                at_grad, at_q, at_out, at_lse = (x[None, None, visit.place] for x in (of_grad, of_q, of_out, of_lse))
                keys, values = (x[item, number, visit.keys][None, None] for x in (k, v))
                part = flash_backward(at_grad, at_q, keys, values, at_out, at_lse, 0.0, False, attn_mask=visit.mask, scale=scale)
                by_choice.append(part[0][0, 0])
                dk[item, number, visit.keys].add_(part[1][0, 0])
                dv[item, number, visit.keys].add_(part[2][0, 0])
            dq[item, number].add_(F.embedding_bag(head.row, torch.cat(by_choice).to(dq.dtype), mode="sum"))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


register(cpu_block_selected, cpu_block_selected_backward, tensors=2)
