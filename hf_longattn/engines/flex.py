"""CUDA engine: compiled flex_attention over a block list of the band, and over the global columns; global rows are computed densely."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from .block_lists import Lists, block_mask, packed
from .global_rows import gather_tokens, global_index, overwrite_global_rows
from .merging import merged
from .pattern import Pattern, ScoreMod

BLOCK = 128


@cache
def kernel(device_type: str) -> Any:
    """flex_attention, compiled where that gives a fused forward and backward."""
    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention


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
    offset = kv_len - q_len
    attention = kernel(q.device.type)
    shifted = None if score_mod is None else (lambda score, b, h, i, j: score_mod(score, b, h, i + offset, j))
    band = band_block_mask(pattern, q_len, kv_len, key_mask, q.device)
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
    column_out, column_aux = attention(q, *at, score_mod=at_column, block_mask=columns, scale=scale, return_aux=AuxRequest(lse=True))
    out = merged([out, column_out], [aux.lse, column_aux.lse])
    if not pattern.global_rows:
        return out
    return overwrite_global_rows(out, q, k, v, index, real, causal=pattern.causal, key_mask=key_mask, scale=scale, score_mod=score_mod)


def band_block_mask(pattern: Pattern, q_len: int, kv_len: int, key_mask: Tensor | None, device: torch.device) -> BlockMask:
    """The blocks that the band touches, listed in (blocks of the sequence) × (blocks of the window) numbers.

    Blocks in which every pair is visible are listed as full: the kernel evaluates no mask there.
    """
    offset = kv_len - q_len
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
    offset = kv_len - q_len
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


def _per_block(mask: Tensor, reduce: Any) -> Tensor:
    """Reduce ``mask (B, N)`` by ``any`` or ``all`` over key blocks: ``(B, blocks)``; slots past the end are False."""
    missing = -mask.shape[1] % BLOCK
    blocks = torch.nn.functional.pad(mask, (0, missing)).unflatten(1, (-1, BLOCK))
    return blocks.any(-1) if reduce is any else blocks.all(-1)
