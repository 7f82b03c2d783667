"""Attention of a few queries, each over a list of keys of its own in a long cache, of which only the listed rows are read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dense import index_grid
from .pattern import ScoreMod


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Rows of a cache.

    Args:
        x: ``(B, H_kv, N, D)``; a view of a larger buffer is read in place.
        index: ``(B, H, …)`` int64, positions below N, with ``H_kv`` dividing ``H``: the heads of a group read the same head of x.
    Returns:
        ``(B, H, …, D)``.
    """
    batch, kv_heads, length, width = x.shape
    if x.stride(3) != 1 or any(size > 1 and step % width for size, step in zip(x.shape[:3], x.stride()[:3], strict=True)):
        x = x.contiguous()
    steps = [step // width if size > 1 else 0 for size, step in zip(x.shape[:3], x.stride()[:3], strict=True)]
    rows = 1 + sum((size - 1) * step for size, step in zip((batch, kv_heads, length), steps, strict=True))
    items = torch.arange(batch, device=x.device)[:, None] * steps[0]
    heads = torch.arange(index.shape[1], device=x.device) // (index.shape[1] // kv_heads) * steps[1]
    first = (items + heads).view(batch, index.shape[1], *[1] * (index.dim() - 2))
    return F.embedding(index * steps[2] + first, x.as_strided((rows, width), (width, 1)))


def term_at(score_mod: ScoreMod, columns: Tensor, kv_len: int) -> Tensor:
    """What ``score_mod`` adds to the scores of keys at ``columns (B, H, Nq, K)``, for the last Nq of ``kv_len`` positions."""
    batch, heads, q_len, _ = columns.shape
    b, h, q_idx, _ = index_grid(batch, heads, q_len, kv_len, columns.device)
    return score_mod(torch.zeros(columns.shape, device=columns.device), b, h, q_idx, columns)


def picked_attention(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, *, scaling: float | None = None) -> Tensor:
    """Softmax attention of every query over its own keys, ``(B, H, Nq, D)``; zeros where it sees none.

    Args:
        q: ``(B, H, Nq, D)``.
        keys, values: ``(B, H, Nq, K, D)``.
        seen: ``(B, H, Nq, K)`` bool, or a bias that is -inf where a key is not seen: the scores then have its dtype, if that is wider.
    """
    (batch, heads, q_len, width), dtype = q.shape, q.dtype
    if seen.is_floating_point():
        wider = torch.promote_types(dtype, seen.dtype)
        q, keys, values, seen = (x.to(wider) for x in (q, keys, values, seen))
    queries, mask = q.reshape(batch, heads * q_len, 1, width), seen.flatten(1, 2)[:, :, None]
    out = F.scaled_dot_product_attention(queries, keys.flatten(1, 2), values.flatten(1, 2), attn_mask=mask, scale=scaling)
    return out.view(batch, heads, q_len, values.shape[-1]).to(dtype)
