"""Several softmaxes over disjoint keys, made into one over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merged(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> Tensor:
    """Outputs ``(…, N, D)`` weighted by ``exp(lse)`` with log-sum-exps ``(…, N)``; zeros where all of these are -inf."""
    lse = torch.stack(list(lses))
    highest = lse.detach().amax(0).clamp(min=torch.finfo(lse.dtype).min)
    shares = (lse - highest).exp()
    shares = shares / shares.sum(0).clamp(min=torch.finfo(lse.dtype).tiny)
    return sum(share[..., None].to(out.dtype) * out for share, out in zip(shares, outs, strict=True))
