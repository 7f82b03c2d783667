"""Linear path in plain PyTorch operations: used with dropout and score terms, where no fused kernel applies; on every device.

Blocks of queries meet their slice of keys (a view), global columns are appended, global rows are computed against all keys.
Autograd goes through; memory is linear, N times the visited keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dense import masked_softmax, products
from .global_rows import global_index, overwrite_global_rows
from .pattern import Pattern, ScoreMod

BLOCK = 128


def blockwise_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    key_mask: Tensor | None,
    global_mask: Tensor | None,
    scale: float,
    dropout_p: float = 0.0,
    score_mod: ScoreMod | None = None,
) -> Tensor:
    """As :func:`hf_longattn.engines.block_sparse.block_sparse_attention`, with dropout and any ``score_mod``."""
    (batch, heads, q_len, _head_dim), kv_len = q.shape, k.shape[2]
    device, offset = q.device, kv_len - q_len
    exporting = torch.compiler.is_exporting()
    # By branches, not min and max, which torch.compile would keep in the shapes, where Inductor fails to divide by them.
    left = pattern.left if exporting or pattern.left <= kv_len else kv_len
    right = pattern.right if exporting or pattern.right <= kv_len else kv_len
    # A graph for all lengths may not ask whether the last block is full, or the only one: there is always one more.
    blocks = q_len // BLOCK + 2 if exporting else -(-q_len // BLOCK)
    width = BLOCK + left + right
    missing = blocks * BLOCK - q_len

    def slices(x: Tensor) -> Tensor:
        """Keys (B, H, N, …) as overlapping slices (B, H, blocks, width, …); slots outside the sequence are zeros."""
        before, after = left - offset, right + missing
        x = F.pad(x, (0, 0, before, after)) if before >= 0 else F.pad(x[:, :, -before:], (0, 0, 0, after))
        return x.unfold(2, width, BLOCK).transpose(-1, -2)

    q_blocks = F.pad(q, (0, 0, 0, missing)).unfold(2, BLOCK, BLOCK).transpose(-1, -2)
    b = torch.arange(batch, device=device).view(-1, 1, 1, 1, 1)
    h = torch.arange(heads, device=device).view(1, -1, 1, 1, 1)
    start = torch.arange(blocks, device=device).view(1, 1, -1, 1, 1) * BLOCK + offset
    q_idx = start + torch.arange(BLOCK, device=device).view(1, 1, 1, -1, 1)
    kv_idx = start - left + torch.arange(width, device=device).view(1, 1, 1, 1, -1)
    inside = (kv_idx >= 0) & (kv_idx < kv_len) & (q_idx < kv_len)
    q_safe, kv_safe = q_idx.clamp(max=kv_len - 1), kv_idx.clamp(0, kv_len - 1)

    def scored(queries: Tensor, keys: Tensor, i: Tensor, j: Tensor) -> Tensor:
        scores = products(queries, keys) * scale
        return scores if score_mod is None else score_mod(scores, b, h, i, j)

    seen = inside & pattern.band_mod(b, h, q_idx, kv_idx)
    if key_mask is not None:
        seen = seen & key_mask[b, kv_safe]
    scores, values = scored(q_blocks, slices(k), q_safe, kv_safe), slices(v)
    if global_mask is None:
        weights = masked_softmax(scores, seen)
        return first_rows((F.dropout(weights, dropout_p).to(v.dtype) @ values).flatten(2, 3), q_len)

    index, real = global_index(global_mask if key_mask is None else global_mask & key_mask)
    columns = index[:, None, None, None, :]
    column_seen = real[:, None, None, None, :] & (q_idx < kv_len) & ~pattern.band_mod(b, h, q_idx, columns)
    if pattern.causal:
        column_seen = column_seen & (columns <= q_idx)
    k_global, v_global = (x[torch.arange(batch, device=device)[:, None], :, index].transpose(1, 2)[:, :, None] for x in (k, v))
    scores = torch.cat([scores, scored(q_blocks, k_global, q_safe, columns)], -1)
    shape = torch.broadcast_shapes(seen.shape[:-1], column_seen.shape[:-1])
    seen = torch.cat([seen.expand(*shape, -1), column_seen.expand(*shape, -1)], -1)
    weights = F.dropout(masked_softmax(scores, seen), dropout_p).to(v.dtype)
    out = first_rows((weights[..., :width] @ values + weights[..., width:] @ v_global).flatten(2, 3), q_len)
    if not pattern.global_rows:
        return out
    return overwrite_global_rows(
        out, q, k, v, index, real, causal=pattern.causal, key_mask=key_mask, scale=scale, dropout_p=dropout_p, score_mod=score_mod
    )


def first_rows(x: Tensor, count: int) -> Tensor:
    """``x (B, H, N, D)`` cut to its first ``count`` tokens; in an exported graph by an index, since a slice asks whether it is all of x."""
    return x.index_select(2, torch.arange(count, device=x.device)) if torch.compiler.is_exporting() else x[:, :, :count]
