"""Low-rank engine: sequences projected along their length; the softmax over what they become is the dense engine's.

Nothing of size N×N is made, and outside the fused kernel nothing of size N×rank but the projection itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def project_length(projection: Tensor, x: Tensor) -> Tensor:
    """``Σ_n projection[b, h, n, r] x[b, h, n, d]``: ``(B or 1, H or 1, N, R)`` and ``(B, H, N, D)`` to ``(B, H, R, D)``."""
    projection = projection.to(x.dtype)
    batch, heads, length, width = x.shape
    if projection.shape[1] == 1:  # one product for all heads, side by side
        flat = x.transpose(1, 2).reshape(batch, length, heads * width)
        shared = projection[:, 0].transpose(1, 2).expand(batch, -1, -1)
        return torch.bmm(shared, flat).unflatten(2, (heads, width)).transpose(1, 2)
    return projection.transpose(2, 3) @ x


def convolve_blocks(kernel: Tensor, x: Tensor) -> Tensor:
    """Each block of as many tokens as ``kernel (H or 1, S)`` has entries, weighed by them: ``(B, H, N, D)`` to ``(B, H, ⌈N/S⌉, D)``."""
    size = kernel.shape[1]
    blocks = F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))
    weights = kernel.to(x.dtype)[None, :, None, None, :]
    return (weights.expand(*blocks.shape[:3], 1, size) @ blocks).squeeze(3)


def convolve(kernel: Tensor, x: Tensor) -> Tensor:
    """Depthwise convolution along the length with ``kernel (H, S)``, S odd, zeros beyond the ends: ``(B, H, N, D)`` to the same."""
    heads, size = kernel.shape
    return F.conv2d(x, kernel.to(x.dtype)[:, None, :, None], padding=(size // 2, 0), groups=heads)


def pseudo_inverse(a: Tensor, iterations: int, per_matrix: bool) -> Tensor:
    """An approximate Moore–Penrose inverse of each ``a (B, H, M, M)``, whose rows are non-negative and sum to 1.

    Z ← ¼ Z (13 I − A Z (15 I − A Z (7 I − A Z))) from Z = Aᵀ / ‖A‖₁, with the norm of each matrix, or the largest of all matrices.
    """
    shape = a.shape
    a = a.flatten(0, 1)
    norms = a.sum(-2).amax(-1)
    norms = norms if per_matrix else norms.amax(0).expand_as(norms)
    z = a.transpose(1, 2) / norms.clamp(min=torch.finfo(a.dtype).tiny)[:, None, None]
    eye = torch.eye(shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        product = torch.bmm(a, z)
        inner = torch.baddbmm(15 * eye - 7 * product, product, product)
        inner = torch.baddbmm((13 * eye).expand_as(product), product, inner, alpha=-1)
        z = torch.bmm(z, inner) * 0.25
    return z.view(shape)


def segment_matrix(real: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Averages over ``count`` nearly equal runs (segments) of each sequence's real tokens, as a matrix ``(B, M, N)``.

    An entry is 1 / (tokens of the segment) where a real token of ``real (B, N)`` is in it. Of n real tokens, M segments take ⌊n/M⌋ or one
    more, the shorter ones first; of fewer than M tokens, each is a segment and the remaining segments are empty.
    """
    number = real.sum(-1, keepdim=True)
    token = real.long().cumsum(-1) - 1
    size = number // count
    shorter = (size + 1) * count - number
    boundary = shorter * size
    segment = torch.where(token < boundary, token // size.clamp(min=1), shorter + (token - boundary) // (size + 1))
    within = (segment[:, None] == torch.arange(count, device=real.device)[:, None]) & real[:, None]
    return within.to(dtype) / within.sum(-1, keepdim=True).clamp(min=1)


def segment_means(x: Tensor, count: int) -> Tensor:
    """The means of the segments of ``x (B, H, N, D)``, all of whose tokens are real, ``(B, H, M, D)``; of fewer than M tokens, ``x``."""
    length = x.shape[2]
    if length <= count:
        return x
    if torch.compiler.is_exporting():  # one graph for all lengths cannot have slices whose bounds depend on the length
        everything = torch.ones(1, length, dtype=torch.bool, device=x.device)
        return project_length(segment_matrix(everything, count, x.dtype).transpose(1, 2)[:, None], x)
    size = length // count
    shorter = (size + 1) * count - length
    means = [x[:, :, : shorter * size].unflatten(2, (shorter, size)).mean(3)]
    if shorter < count:
        means.append(x[:, :, shorter * size :].unflatten(2, (count - shorter, size + 1)).mean(3))
    return torch.cat(means, 2)
