"""CPU engine for queries that choose blocks of keys: PyTorch's fused flash kernel on views of the keys, forward and backward.

A block of keys is one contiguous slice, so for every block just the queries that chose it are gathered, and the own blocks of all
queries are views on both sides. What a query sees in its blocks merges exactly by log-sum-exp. A softmax gradient needs only the merged
output and log-sum-exp, so the backward of every block is the kernel's own backward with the merged values.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu_layout import MASKED, mask_dtype

TOGETHER = 4096
"""Queries, of all heads, whose own blocks are computed in one call."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Own(NamedTuple):
    """Some blocks whose queries meet their own keys: ``view`` makes ``(H, N, …)`` the blocks ``(blocks, H, size, …)``."""

    first: int
    blocks: int
    size: int
    mask: Tensor | None

    def view(self, x: Tensor) -> Tensor:
        return x[:, self.first : self.first + self.blocks * self.size].unflatten(1, (self.blocks, self.size)).transpose(0, 1)


class _Visit(NamedTuple):
    """Some queries of one head meet the keys of a block that they chose."""

    queries: Tensor
    keys: slice
    mask: Tensor | None
    place: slice
    """Where these queries stand among all choices, sorted by block."""


@torch.library.custom_op("hf_longattn::cpu_visits", mutates_args=(), device_types="cpu")
def cpu_visits(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, chosen: Tensor, block_size: int, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of every query to its own block and to the blocks it chose.

    Args:
        q, k, v: ``(B, H, N, D)``.
        key_mask: ``(B, N)`` bool, True = real token, or None.
        chosen: ``(B, H, N, K)`` int64, blocks besides the own one, none twice; -1 is none.
        causal: leave out the keys behind the query of its own block.
    Returns:
        output ``(B, H, N, D)`` (stored token-major, so that merging the heads is free) and log-sum-exp ``(B, H, N)``, 0 where a query
        sees nothing.
    """
    out, lse = _empty(q)
    for item in range(q.shape[0]):
        padding = _padding(key_mask, item, q)
        for own in _own_blocks(q.shape[1], q.shape[2], block_size, causal, padding, mask_dtype(q)):
            part, part_lse = _flash(*(own.view(x[item]) for x in (q, k, v)), attn_mask=own.mask, scale=scale)
            own.view(out[item]).copy_(part)
            own.view(lse[item]).copy_(part_lse)
        for head in range(q.shape[1]) if chosen.shape[3] else ():
            of_q, of_k, of_v, of_out, of_lse, picked = (x[item, head] for x in (q, k, v, out, lse, chosen))
            _add_chosen(of_q, of_k, of_v, of_out, of_lse, picked, block_size, padding, scale)
    nothing = lse <= MASKED / 2
    if bool(nothing.any()):
        out.masked_fill_(nothing[..., None], 0)
        lse.masked_fill_(nothing, 0)
    return out, lse


def _add_chosen(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, chosen: Tensor, size: int, padding: Tensor | None, scale: float
) -> None:
    """Merge the blocks that the queries of one head have ``chosen (N, K)`` into their ``out (N, D)`` and ``lse (N,)``."""
    length, many = chosen.shape
    pairs = length * many
    by_block = chosen.flatten().argsort(stable=True)
    # One row for every choice, sorted by block, and behind them the own blocks. Rows without a block have the share 0.
    parts = torch.zeros(pairs + length, q.shape[1], dtype=lse.dtype)
    lses = torch.full((pairs + length,), MASKED, dtype=lse.dtype)
    parts[pairs:], lses[pairs:] = out, lse
    for visit in _visits(chosen, by_block, size, padding):
        part, part_lse = _flash(_rows(q, visit), k[None, None, visit.keys], v[None, None, visit.keys], attn_mask=visit.mask, scale=scale)
        parts[visit.place], lses[visit.place] = part[0, 0], part_lse[0, 0]
    row = torch.empty_like(by_block).scatter_(0, by_block, torch.arange(pairs)).view(length, many)
    row = torch.cat([row, torch.arange(pairs, pairs + length)[:, None]], 1)
    shares = lses[row]
    lse.copy_(shares.logsumexp(1))
    out.copy_(F.embedding_bag(row, parts, mode="sum", per_sample_weights=shares.sub_(lse[:, None]).exp_()))


def _own_blocks(heads: int, length: int, size: int, causal: bool, padding: Tensor | None, dtype: torch.dtype) -> Iterator[_Own]:
    """Whole blocks, as many in a call as keep its results in the cache; then what is left behind them."""
    whole, step = length // size, max(1, TOGETHER // (heads * size))
    stretches = [(at * size, min(step, whole - at), size) for at in range(0, whole, step)]
    if length > whole * size:
        stretches.append((whole * size, 1, length - whole * size))
    for first, count, width in stretches:
        mask = _future(width, dtype) if causal else None
        hidden = None if padding is None else padding[first : first + count * width].view(count, 1, 1, width)
        if hidden is not None and bool(hidden.any()):
            mask = hidden if mask is None else mask + hidden
        yield _Own(first, count, width, mask)


@lru_cache(maxsize=16)
def _future(size: int, dtype: torch.dtype) -> Tensor:
    """The additive mask ``(1, 1, size, size)`` of a block whose queries see no later key. Shared: never written to."""
    return torch.full((size, size), MASKED, dtype=dtype).triu_(1)[None, None]


def _visits(chosen: Tensor, by_block: Tensor, size: int, padding: Tensor | None) -> Iterator[_Visit]:
    """The blocks of one head that were ``chosen (N, K)``, each with all queries that chose it; ``by_block (N · K)`` sorts the choices."""
    length, many = chosen.shape
    end, *counts = torch.bincount(chosen.flatten() + 1, minlength=-(-length // size) + 1).tolist()
    for block, count in enumerate(counts):
        place = slice(end, end + count)
        end += count
        if count:
            keys = slice(block * size, min(length, (block + 1) * size))
            mask = None if padding is None or not bool(padding[keys].any()) else padding[None, None, None, keys]
            yield _Visit(by_block[place] // many, keys, mask, place)


def _rows(x: Tensor, visit: _Visit) -> Tensor:
    """The visiting queries' rows of ``x (N, …)``, ``(1, 1, n, …)``."""
    return x.index_select(0, visit.queries)[None, None]


def _padding(key_mask: Tensor | None, item: int, q: Tensor) -> Tensor | None:
    """The additive mask ``(N,)`` of one item's padding, where it has any."""
    if key_mask is None or bool(key_mask[item].all()):
        return None
    return torch.zeros(key_mask.shape[1], dtype=mask_dtype(q)).masked_fill_(~key_mask[item], MASKED)


def _empty(q: Tensor) -> tuple[Tensor, Tensor]:
    return _token_major(q.dtype, q)[0], q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=mask_dtype(q)).transpose(1, 2)


def _token_major(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Empty tensors of the same shapes ``(B, H, N, D)``, stored as ``(B, N, H, D)``."""
    return tuple(x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=dtype).transpose(1, 2) for x in tensors)


@cpu_visits.register_fake
def _(q, k, v, key_mask, chosen, block_size, causal, scale):  # type: ignore[no-untyped-def]
    return _empty(q)


@torch.library.custom_op("hf_longattn::cpu_visits_backward", mutates_args=(), device_types="cpu")
def cpu_visits_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, key_mask: Tensor | None, chosen: Tensor,
    block_size: int, causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of :func:`cpu_visits` with respect to q, k, v, added up in float32 or finer."""
    dq, dk, dv = (x.zero_() for x in _token_major(mask_dtype(q), q, k, v))
    heads, length = q.shape[1:3]
    for item in range(q.shape[0]):
        padding = _padding(key_mask, item, q)
        for own in _own_blocks(heads, length, block_size, causal, padding, mask_dtype(q)):
            blocks = [own.view(x[item]) for x in (grad, q, k, v, out, lse)]
            for total, part in zip((dq, dk, dv), _flash_backward(*blocks, 0.0, False, attn_mask=own.mask, scale=scale), strict=True):
                own.view(total[item]).add_(part)
        for head in range(heads) if chosen.shape[3] else ():
            by_block = chosen[item, head].flatten().argsort(stable=True)
            for visit in _visits(chosen[item, head], by_block, block_size, padding):
                of_grad, of_q, of_out, of_lse = (_rows(x[item, head], visit) for x in (grad, q, out, lse))
                keys, values = (x[item, head, visit.keys][None, None] for x in (k, v))
                part = _flash_backward(of_grad, of_q, keys, values, of_out, of_lse, 0.0, False, attn_mask=visit.mask, scale=scale)
                dq[item, head].index_add_(0, visit.queries, part[0][0, 0].to(dq.dtype))
                dk[item, head, visit.keys].add_(part[1][0, 0])
                dv[item, head, visit.keys].add_(part[2][0, 0])
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


@cpu_visits_backward.register_fake
def _(grad, q, k, v, out, lse, key_mask, chosen, block_size, causal, scale):  # type: ignore[no-untyped-def]
    return _token_major(q.dtype, q, k, v)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, chosen, *ctx.settings = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, key_mask, chosen)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    gradients = cpu_visits_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return *gradients, None, None, None, None, None


cpu_visits.register_autograd(_backward, setup_context=_setup_context)
