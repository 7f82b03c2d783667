"""Global query rows: the few tokens that see every key are computed densely and put over the rows of a sparse output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dense import dense_attention
from .pattern import ScoreMod


def global_index(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the True entries of ``mask (B, N)``, padded to the longest row: index ``(B, g)`` and which entries are real."""
    count = mask.sum(-1)
    most, length = count.max().item(), mask.shape[-1]
    if torch.compiler.is_exporting():
        torch._check(most >= 0)
        torch._check(most <= length)
    index = torch.where(mask, torch.arange(length, device=mask.device), length).sort(-1).values[:, :most].clamp(max=length - 1)
    return index, torch.arange(index.shape[1], device=mask.device)[None] < count[:, None]


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of ``x (B, H, N, D)`` at ``index (B, g)`` as ``(B, H, g, D)``."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def overwrite_global_rows(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    real: Tensor,
    *,
    causal: bool,
    key_mask: Tensor | None,
    scale: float,
    dropout_p: float = 0.0,
    score_mod: ScoreMod | None = None,
) -> Tensor:
    """Return ``out (B, H, Nq, D)`` with the rows of the global tokens at key positions ``index (B, g)`` attending to all keys.

    Global tokens before the first query (decoding with a cache) have no row and are ignored.
    """
    offset = k.shape[2] - q.shape[2]
    rows = (index - offset).clamp(min=0)
    row_out = dense_attention(
        gather_tokens(q, rows),
        k,
        v,
        causal=causal,
        key_mask=key_mask,
        scaling=scale,
        dropout_p=dropout_p,
        score_mod=score_mod,
        q_idx=index[:, None, :, None],
    )
    return put_rows(out, row_out, rows, real & (index >= offset))


def put_rows(out: Tensor, rows: Tensor, index: Tensor, real: Tensor) -> Tensor:
    """Return ``out (B, H, N, D)`` with ``rows (B, H, g, D)`` at positions ``index (B, g)`` where ``real (B, g)``."""
    # Entries that are no row go to an extra row that is cut off again: no branch on the data.
    length = out.shape[2]
    index = torch.where(real, index, length)
    item = torch.arange(out.shape[0], device=out.device)[:, None]
    return F.pad(out, (0, 0, 0, 1)).transpose(1, 2).index_put((item, index), rows.transpose(1, 2)).transpose(1, 2)[:, :, :length]
