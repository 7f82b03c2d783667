"""The best of long rows of scores in float32, without a search over the whole row, and when float32 is enough to know them.

The k highest of a row lie in the k blocks with the highest maxima. So the maxima of blocks of 32 are compared first, then those of blocks
of 8 inside the chosen ones, and only what is left is ranked.

A float32 product q·k is off by at most γ·|q|·|k| with γ = (D + 2)·2⁻²⁴ (Higham 2002, Accuracy and Stability of Numerical Algorithms,
§3.1). Where the k-th and the next score lie further apart than twice that, the choice is that of exact arithmetic; elsewhere the row is in
doubt, and the caller ranks it in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTHS = (32, 8)
"""Scores in a block, first and then."""
LEAST = 1024
"""Shortest row for which blocks are compared."""


def narrowed_best(scores: Tensor, k: int, margin: Tensor) -> tuple[Tensor, Tensor]:
    """The k highest of every row, in rising order of their index.

    Args:
        scores: ``(R, N)`` float32, -inf where hidden; k ≤ N.
        margin: ``(R, 1)``, how far a score may be from the exact one.
    Returns:
        Indices ``(R, k)`` int64, -1 where fewer than k are visible, and which rows are in doubt, ``(R,)`` bool.
    """
    (rows, length), left, place = scores.shape, scores, None
    if k == length:
        index = torch.arange(k, device=scores.device).masked_fill(scores == float("-inf"), -1)
        return index.sort(-1).values, torch.zeros(rows, dtype=torch.bool, device=scores.device)
    for width in WIDTHS:
        blocks = -(-left.shape[1] // width)
        if left.shape[1] < LEAST or blocks < 2 * (k + 1):
            continue
        missing = blocks * width - left.shape[1]
        left = (F.pad(left, (0, missing), value=float("-inf")) if missing else left).view(rows * blocks, width)
        best = left.amax(1).view(rows, blocks).topk(k + 1, sorted=False).indices
        first = torch.arange(rows, device=scores.device)[:, None] * blocks
        left = F.embedding(best + first, left).flatten(1)
        inside = (best[..., None] * width + torch.arange(width, device=scores.device)).flatten(1)
        place = inside if place is None else place.gather(1, inside)
    values, index = left.topk(k + 1)
    index = index[:, :k] if place is None else place.gather(1, index[:, :k])
    gap = values[:, k - 1] - values[:, k]
    doubtful = ~(gap > 2 * margin[:, 0]) & (values[:, k] != float("-inf"))
    return index.masked_fill(values[:, :k] == float("-inf"), -1).sort(-1).values, doubtful


def product_margin(q: Tensor, longest: Tensor, scale: float) -> Tensor:
    """How far float32 scores ``scale · q·k`` may be from the exact ones, for ``q (…, n, D)`` and keys not longer than ``longest (…)``.

    Returns ``(…, n, 1)`` float32. The lengths, the product and the factor are rounded as well, for which D + 2 is taken as D + 8.
    """
    rounding = (q.shape[-1] + 8) * torch.finfo(torch.float32).eps / 2
    length = torch.linalg.vector_norm(q, dim=-1, keepdim=True, dtype=torch.float32)
    return length * longest[..., None, None] * (abs(scale) * rounding) + torch.finfo(torch.float32).tiny


def float32_products(x: Tensor) -> bool:
    """Whether products of ``x`` in float32 are what :func:`product_margin` expects: on a CPU, without a faster, coarser mode."""
    return x.device.type == "cpu" and x.dtype != torch.float64 and torch.get_float32_matmul_precision() == "highest"
