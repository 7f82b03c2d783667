"""CUDA engine: compiled flex_attention over a block list of the band and the global columns; global rows are computed densely."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .global_rows import global_index, overwrite_global_rows
from .pattern import Pattern, ScoreMod

BLOCK = 128


@cache
def _kernel(device_type: str) -> Any:
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
    if global_mask is not None and key_mask is not None:
        global_mask = global_mask & key_mask
    block_mask = band_block_mask(pattern, q_len, kv_len, key_mask, global_mask, q.device)
    offset = kv_len - q_len
    shifted = None if score_mod is None else (lambda score, b, h, i, j: score_mod(score, b, h, i + offset, j))
    out = _kernel(q.device.type)(q, k, v, score_mod=shifted, block_mask=block_mask, scale=scale)
    if global_mask is None or not pattern.global_rows:
        return out
    index, real = global_index(global_mask)
    return overwrite_global_rows(out, q, k, v, index, real, causal=pattern.causal, key_mask=key_mask, scale=scale, score_mod=score_mod)


def band_block_mask(
    pattern: Pattern, q_len: int, kv_len: int, key_mask: Tensor | None, global_mask: Tensor | None, device: torch.device
) -> BlockMask:
    """The blocks that the band and the global columns touch, without ever evaluating the N×N mask.

    Blocks in which every pair is visible are listed as full: the kernel evaluates no mask there.
    """
    offset = kv_len - q_len
    q_start = torch.arange(0, q_len, BLOCK, device=device)[:, None] + offset
    q_stop = (q_start + BLOCK).clamp(max=kv_len) - 1
    k_start = torch.arange(0, kv_len, BLOCK, device=device)[None, :]
    k_stop = (k_start + BLOCK).clamp(max=kv_len) - 1
    touched = (q_start - k_stop <= pattern.left) & (k_start - q_stop <= pattern.right)
    full = (
        (q_stop - k_start <= pattern.left)
        & (k_stop - q_start <= pattern.right)
        & (q_stop - q_start == BLOCK - 1)
        & (k_stop - k_start == BLOCK - 1)
    )
    touched, full = touched[None, None], full[None, None]
    if key_mask is not None:
        touched, full = touched & _per_block(key_mask, any), full & _per_block(key_mask, all)
    if global_mask is not None:
        columns = _per_block(global_mask, any)
        touched = touched | (columns & (k_start <= q_stop) if pattern.causal else columns)
    partial = touched & ~full

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        i = q_idx + offset
        seen = pattern.band_mod(b, h, i, kv_idx)
        if global_mask is not None:
            column = global_mask[b, kv_idx]
            seen = seen | (column & (kv_idx <= i) if pattern.causal else column)
        return seen if key_mask is None else seen & key_mask[b, kv_idx]

    return BlockMask.from_kv_blocks(
        *_block_list(partial), *_block_list(full), BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=(q_len, kv_len)
    )


def _per_block(mask: Tensor, reduce: Any) -> Tensor:
    """Reduce ``mask (B, N)`` by ``any`` or ``all`` over key blocks: ``(B, 1, 1, blocks)``; slots past the end are False."""
    missing = -mask.shape[1] % BLOCK
    blocks = torch.nn.functional.pad(mask, (0, missing)).unflatten(1, (-1, BLOCK))
    return (blocks.any(-1) if reduce is any else blocks.all(-1))[:, None, None, :]


def _block_list(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """``(B, 1, q blocks, kv blocks)`` bool as the counts and the indices that flex_attention reads."""
    return blocks.sum(-1, dtype=torch.int32), blocks.int().argsort(dim=-1, descending=True, stable=True).to(torch.int32)
