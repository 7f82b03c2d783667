"""Random directions that are orthogonal in blocks and have the lengths of Gaussian vectors (Choromanski et al. 2021, Performer, §2.4)."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonal_gaussian(rows: int, columns: int, *seeds: int) -> Tensor:
    """``(rows, columns)`` fp32: each row is distributed as N(0, I), and rows of one block of ``columns`` are orthogonal.

    Drawn on the CPU from ``seeds``, so that it is the same for every device.
    """
    generator = torch.Generator().manual_seed(mixed(*seeds))
    blocks = []
    for _ in range(0, rows, columns):
        q, r = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64, device="cpu"))
        blocks.append((q * r.diagonal().sign()).mT)  # with the signs that make Q uniform, whichever library factorised
    lengths = torch.randn(rows, columns, generator=generator, dtype=torch.float64, device="cpu").norm(dim=1, keepdim=True)
    return (torch.cat(blocks)[:rows] * lengths).float()


def mixed(*seeds: int) -> int:
    """One seed from several, without collisions among small ones (the golden ratio's multiples, modulo 2**63)."""
    value = 0
    for seed in seeds:
        value = ((value ^ (seed % (1 << 31))) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % (1 << 63)
    return value
