"""A linear map of its own for every head, without bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..engines.dense import repeat_heads


class HeadwiseLinear(nn.Module):
    """``weight (H, D, F)``; maps ``(B, H or H_kv, n, D)`` to ``(B, H, n, F)``, in the dtype of the input."""

    def __init__(self, num_heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, in_features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        return repeat_heads(x, self.weight.shape[0]) @ self.weight.to(x.dtype)

    def extra_repr(self) -> str:
        return "heads={}, in_features={}, out_features={}".format(*self.weight.shape)
