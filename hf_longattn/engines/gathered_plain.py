"""The gathered engine in plain PyTorch operations, on every device: with dropout, score terms and biases that need gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .pattern import ScoreMod

if TYPE_CHECKING:
    from .gathered import Part


def plain_gathered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    parts: Sequence[Part],
    *,
    key_mask: Tensor | None,
    scale: float,
    dropout_p: float = 0.0,
    score_mod: ScoreMod | None = None,
) -> Tensor:
    """As :func:`hf_longattn.engines.gathered.gathered_attention`. Memory is the number of listed pairs."""
    outs, lses = zip(*(_part(q, k, v, part, key_mask, scale, dropout_p, score_mod) for part in parts), strict=True)
    lse = torch.stack(lses)
    highest = lse.detach().amax(0).clamp(min=torch.finfo(lse.dtype).min)
    shares = (lse - highest).exp()
    shares = shares / shares.sum(0).clamp(min=torch.finfo(lse.dtype).tiny)
    return sum(share[..., None].to(out.dtype) * out for share, out in zip(shares, outs, strict=True))


def _part(
    q: Tensor, k: Tensor, v: Tensor, part: Part, key_mask: Tensor | None, scale: float, dropout_p: float, score_mod: ScoreMod | None
) -> tuple[Tensor, Tensor]:
    """Output (B, H, Nq, D) and log-sum-exp (B, H, Nq) of one part, -inf where a query sees nothing."""
    batch, heads, q_len, head_dim = q.shape
    b = torch.arange(batch, device=q.device).view(-1, 1, 1, 1)
    h = torch.arange(heads, device=q.device).view(1, -1, 1, 1)
    rows, columns = part.queries.clamp(min=0), part.keys.clamp(min=0)
    scores = (q[b, h, rows] @ k[b, h, columns].transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    q_idx, kv_idx = rows[..., :, None], columns[..., None, :]
    if score_mod is not None:
        scores = score_mod(scores, b[..., None], h[..., None], q_idx, kv_idx)
    seen = allowed(part, key_mask, b)
    if part.bias is not None:
        if part.bias.dtype == torch.bool:
            seen = seen & part.bias
        else:
            scores = scores + part.bias
    scores = scores.masked_fill(~seen, float("-inf"))
    highest = scores.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weights = (scores - highest).exp()
    total = weights.sum(-1, keepdim=True)
    empty = total == 0
    weights = F.dropout(weights / total.masked_fill(empty, 1.0), dropout_p)
    out = weights.to(v.dtype) @ v[b, h, columns]
    lse = (highest + total.masked_fill(empty, 1.0).log()).masked_fill(empty, float("-inf"))[..., 0]
    # Empty slots go to one row behind the last.
    place = torch.where(part.queries >= 0, part.queries, q_len).expand(batch, heads, -1, -1).flatten(2)
    out = q.new_zeros(batch, heads, q_len + 1, head_dim, dtype=out.dtype).scatter(
        2, place[..., None].expand(-1, -1, -1, head_dim), out.flatten(2, 3)
    )
    lse = lse.new_full((batch, heads, q_len + 1), float("-inf")).scatter(2, place, lse.flatten(2))
    return out[:, :, :q_len], lse[:, :, :q_len]


def allowed(part: Part, key_mask: Tensor | None, b: Tensor) -> Tensor:
    """Which pairs the part's rules and the padding leave, ``(B or 1, H or 1, R, Tq, Tk)`` bool."""
    q_idx, kv_idx = part.queries[..., :, None], part.keys[..., None, :]
    seen = (q_idx >= 0) & (kv_idx >= 0)
    distance = q_idx - kv_idx
    if part.causal:
        seen = seen & (distance >= 0)
    if part.inside is not None:
        seen = seen & (distance >= part.inside[0]) & (distance <= part.inside[1])
    if part.outside is not None:
        seen = seen & ~((distance >= part.outside[0]) & (distance <= part.outside[1]))
    if key_mask is not None:
        seen = seen & key_mask[b, part.keys.clamp(min=0)][..., None, :]
    return seen
