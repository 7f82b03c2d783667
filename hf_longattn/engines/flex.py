"""CUDA engine: compiled flex_attention over a block list of the band, and over the global columns; global rows are computed densely."""

from __future__ import annotations

import threading
import types
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from .block_lists import Lists, block_mask, mask_bytes, packed
from .byte_cache import KEPT
from .global_rows import gather_tokens, global_index, overwrite_global_rows
from .merging import merged
from .pattern import Pattern, ScoreMod

BLOCK = 128


MOST_KERNELS = 64
"""Kinds of calls that have a compiled function of their own; further ones share one."""
_kernels: dict[Hashable, Any] = {}
_lock = threading.Lock()


def kernel(device_type: str, kind: Hashable = None) -> Any:
    """flex_attention, compiled where that gives a fused forward and backward; in a graph that is being compiled, as it is.

    ``kind`` is what a mask's closure holds besides tensors and lengths. PyTorch compiles a function for a few such closures only, counted
    by its code object, and then falls back to an unfused kernel with N×N memory; so each kind gets a separate function and code object.
    """
    if device_type != "cuda" or torch.compiler.is_compiling():
        return flex_attention
    found = _kernels.get(kind)
    if found is None:
        with _lock:
            kind = kind if len(_kernels) < MOST_KERNELS else None
            found = _kernels.setdefault(kind, compiled_kernel(len(_kernels)))
    return found


def compiled_kernel(number: int, **how: Any) -> Any:
    """flex_attention compiled under a separate code object."""
    own = types.FunctionType(_attention.__code__.replace(co_name=f"flex_attention_{number}"), globals())
    return torch.compile(own, **{"dynamic": True, **how})


def _attention(*tensors, **arguments):  # type: ignore[no-untyped-def]
    return flex_attention(*tensors, **arguments)


def kind_of(score_mod: Any) -> Hashable:
    """What tells score terms apart in :func:`kernel`."""
    code: Hashable = getattr(score_mod, "__code__", None)
    return type(score_mod).__name__ if code is None else code


def flex_band(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    key_mask: Tensor | None,
    global_mask: Tensor | None,
    scale: float,
    score_mod: ScoreMod | None = None,
) -> Tensor:
    """As :func:`hf_longattn.engines.block_sparse.block_sparse_attention`, without dropout."""
    q_len, kv_len = q.shape[2], k.shape[2]
    offset = _offset(q_len, kv_len)
    kind = pattern, key_mask is None, kind_of(score_mod)
    attention, of_columns = (kernel(q.device.type, (part, *kind)) for part in ("band", "columns"))
    shifted = None if score_mod is None else (lambda score, b, h, i, j: score_mod(score, b, h, i + offset, j))
    band = kept_band_block_mask(pattern, q_len, kv_len, key_mask, q.device)
    if global_mask is None:
        return attention(q, k, v, score_mod=shifted, block_mask=band, scale=scale)
    index, real = global_index(global_mask if key_mask is None else global_mask & key_mask)
    if index.shape[1] == 0:
        return attention(q, k, v, score_mod=shifted, block_mask=band, scale=scale)
    # Global columns stand in a call of their own: every row of queries visits them, and in one list they would make all rows that long.
    at_column = None if score_mod is None else (lambda score, b, h, i, j: score_mod(score, b, h, i + offset, index[b, j]))
    columns = column_block_mask(pattern, q_len, kv_len, index, real)
    out, aux = attention(q, k, v, score_mod=shifted, block_mask=band, scale=scale, return_aux=AuxRequest(lse=True))
    at = [gather_tokens(x, index) for x in (k, v)]
    column_out, column_aux = of_columns(q, *at, score_mod=at_column, block_mask=columns, scale=scale, return_aux=AuxRequest(lse=True))
    out = merged([out, column_out], [aux.lse, column_aux.lse])
    if not pattern.global_rows:
        return out
    return overwrite_global_rows(out, q, k, v, index, real, causal=pattern.causal, key_mask=key_mask, scale=scale, score_mod=score_mod)


def kept_band_block_mask(pattern: Pattern, q_len: int, kv_len: int, key_mask: Tensor | None, device: torch.device) -> BlockMask:
    """:func:`band_block_mask`, made once for all layers and calls where no padding changes it."""
    if key_mask is not None:
        return band_block_mask(pattern, q_len, kv_len, key_mask, device)
    key = ("band block mask", pattern, q_len, kv_len, device)
    return KEPT.get(key, lambda: band_block_mask(pattern, q_len, kv_len, None, device), mask_bytes)


def band_block_mask(pattern: Pattern, q_len: int, kv_len: int, key_mask: Tensor | None, device: torch.device) -> BlockMask:
    """The blocks that the band touches, listed in (blocks of the sequence) × (blocks of the window) numbers.

    Blocks in which every pair is visible are listed as full: the kernel evaluates no mask there.
    """
    offset = _offset(q_len, kv_len)
    some, every = (None, None) if key_mask is None else (_per_block(key_mask, any), _per_block(key_mask, all))

    def partial_and_full(q_block: Tensor, k_block: Tensor, indices: Tensor) -> tuple[Lists, Lists]:
        q_start, k_start = q_block * BLOCK + offset, k_block * BLOCK
        q_stop, k_stop = (q_start + BLOCK).clamp(max=kv_len) - 1, (k_start + BLOCK).clamp(max=kv_len) - 1
        touched = (q_start - k_stop <= pattern.left) & (k_start - q_stop <= pattern.right)
        touched = touched & (q_block >= 0) & (q_start < kv_len) & (k_block >= 0) & (k_start < kv_len)
        full = (q_stop - k_start <= pattern.left) & (k_stop - q_start <= pattern.right)
        full = full & (q_stop - q_start == BLOCK - 1) & (k_stop - k_start == BLOCK - 1)
        touched, full = touched[None, None], full[None, None]
        if some is not None and every is not None:
            at = k_block.clamp(0, some.shape[1] - 1)
            touched, full = touched & some[:, at][:, None], full & every[:, at][:, None]
        return packed(touched & ~full, indices), packed(touched & full, indices)

    def neighbours(blocks: int, others: int, first: int, width: int) -> tuple[Tensor, Tensor]:
        """Rows of blocks, and the blocks that may touch them, of which the first holds position ``block · BLOCK + first``."""
        row = torch.arange(blocks, device=device)[:, None]
        start = (row * BLOCK + first).div(BLOCK, rounding_mode="floor").clamp(min=0)
        return row, start + torch.arange(min(others, (width + 3 * BLOCK - 3) // BLOCK), device=device)

    left, right = min(pattern.left, kv_len), min(pattern.right, kv_len)
    q_blocks, k_blocks = -(-q_len // BLOCK), -(-kv_len // BLOCK)
    row, met = neighbours(q_blocks, k_blocks, offset - left, left + right + 1)
    column, meeting = neighbours(k_blocks, q_blocks, -right - offset, left + right + 1)

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        seen = pattern.band_mod(b, h, q_idx + offset, kv_idx)
        return seen if key_mask is None else seen & key_mask[b, kv_idx]

    by_query, by_key = partial_and_full(row, met, met), partial_and_full(meeting, column, meeting)
    return block_mask((q_len, kv_len), BLOCK, mask_mod, by_query=by_query, by_key=by_key)


def column_block_mask(pattern: Pattern, q_len: int, kv_len: int, index: Tensor, real: Tensor) -> BlockMask:
    """All blocks of the global columns, gathered from positions ``index (B, g)``: those that the band has not shown are seen."""
    offset = _offset(q_len, kv_len)
    q_blocks, k_blocks = -(-q_len // BLOCK), -(-index.shape[1] // BLOCK)

    def everything(rows: int, others: int) -> Lists:
        counts = torch.full((1, 1, rows), others, dtype=torch.int32, device=index.device)
        return counts, torch.arange(others, dtype=torch.int32, device=index.device).expand(1, 1, rows, -1).contiguous()

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        i, j = q_idx + offset, index[b, kv_idx]
        seen = real[b, kv_idx] & ~pattern.band_mod(b, h, i, j)
        return seen & (j <= i) if pattern.causal else seen

    by_query, by_key = (everything(q_blocks, k_blocks), None), (everything(k_blocks, q_blocks), None)
    return block_mask((q_len, index.shape[1]), BLOCK, mask_mod, by_query=by_query, by_key=by_key)


def _offset(q_len: int, kv_len: int) -> int:
    """Position of the first query: a plain 0 for whole sequences, also where lengths are symbols, whose difference the CPU's kernel does
    not take."""
    return 0 if q_len == kv_len else kv_len - q_len


def _per_block(mask: Tensor, reduce: Any) -> Tensor:
    """Reduce ``mask (B, N)`` by ``any`` or ``all`` over key blocks: ``(B, blocks)``; slots past the end are False."""
    missing = -mask.shape[1] % BLOCK
    blocks = torch.nn.functional.pad(mask, (0, missing)).unflatten(1, (-1, BLOCK))
    return blocks.any(-1) if reduce is any else blocks.all(-1)
