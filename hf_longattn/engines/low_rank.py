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
        turned = projection[:, 0].transpose(1, 2).expand(batch, -1, -1)
        return torch.bmm(turned, flat).unflatten(2, (heads, width)).transpose(1, 2)
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
