"""Unnormalised softmax terms of a narrow band, relative to each row's largest score: what another kind of attention can be added to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dense import repeat_heads

BLOCK = 64
"""Queries of a block; its keys are these and the band's width more."""
PIECE = 2048
"""Queries that are worked on at a time."""


def local_softmax_terms(
    q: Tensor, k: Tensor, v: Tensor, left: int, right: int, key_mask: Tensor | None, scale: float, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_j exp(s_ij - c_i) v_j and Σ_j exp(s_ij - c_i) over the keys with i - left ≤ j ≤ i + right, c_i the largest of their s_ij.

    Time and memory N·(left + right + 64) for each head.

    Args:
        q: ``(B, H, Nq, D)``, the last Nq positions of ``k, v (B, H, Nk, D)``.
        key_mask: ``(B, Nk)`` bool, True = real token.
        scale: factor on q·k.
        dropout_p: probability with which a term of the first sum is dropped.
    Returns:
        The two sums, ``(B, H, Nq, D)`` and ``(B, H, Nq, 1)``, and c ``(B, H, Nq, 1)``; zeros where no key is in reach.
    """
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if not traced:  # a band wider than the text costs no more than the text
        left, right = min(left, k.shape[2]), min(right, k.shape[2])
    starts = range(0, q.shape[2], q.shape[2] if traced else PIECE)
    size, first = (starts.step, k.shape[2] - q.shape[2])
    found = []
    for start in starts:
        rows = q[:, :, start : start + size]
        low, high = first + start - left, first + start + rows.shape[2] + right
        at = slice(max(low, 0), min(high, k.shape[2]))
        mask = None if key_mask is None else key_mask[:, at]
        found.append(_piece(rows, k[:, :, at], v[:, :, at], at.start - low, left + right, mask, scale, dropout_p))
    total, weight, most = (torch.cat(parts, 2) for parts in zip(*found, strict=True))
    return total, weight, most


def _piece(
    q: Tensor, k: Tensor, v: Tensor, missing: int, reach: int, key_mask: Tensor | None, scale: float, dropout_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The terms of neighbouring queries; ``missing`` keys before the first of ``k`` do not exist."""
    length = q.shape[2]
    blocks = -(-length // BLOCK)
    span, rows = reach + BLOCK, blocks * BLOCK
    rest = rows + reach - missing - k.shape[2]
    real = torch.ones_like(k[:, 0, :, 0], dtype=torch.bool) if key_mask is None else key_mask
    real = F.pad(real, (missing, rest)).unfold(1, span, BLOCK)
    keys, values = (F.pad(x, (0, 0, missing, rest)).unfold(2, span, BLOCK) for x in (k, v))
    query = F.pad(q, (0, 0, 0, rows - length)).unflatten(2, (blocks, BLOCK))
    scores = (query @ keys) * scale
    apart = torch.arange(span, device=q.device) - torch.arange(BLOCK, device=q.device)[:, None]
    seen = ((apart >= 0) & (apart <= reach)) & real[:, None, :, None, :]
    scores = scores.masked_fill(~seen, float("-inf"))
    most = scores.amax(-1, keepdim=True)
    most = torch.where(most.isfinite(), most, 0.0)
    weights = torch.where(seen, (scores - most).exp(), 0.0)
    total = F.dropout(weights, dropout_p) @ values.mT if dropout_p else weights @ values.mT
    sums = (total, weights.sum(-1, keepdim=True), most)
    total, weight, most = (x.flatten(2, 3)[:, :, :length] for x in sums)
    return total, weight, most
