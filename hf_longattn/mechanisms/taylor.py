"""The second-order Taylor polynomial of exp as a kernel (Arora et al. 2024, Based, section 4.1; Zhang et al. 2024,
section 4.2).

    κ(q, k) = 1 + s + s²/2        s = (q W_q)·(k W_k) / √d

d is the option ``feature_dim``. The features are 1, the d projected coordinates x_i and d (d + 1) / 2 products: x_i² /
√2, and x_i x_j for i < j. The projections W (D × d) are learned for each head. The division by √d follows Based. If
the model scales its products by ``scaling`` instead of D^-½, s is multiplied by scaling · √D.

W is initialised as one random orthogonal map for queries and keys, scaled so that s estimates scaling · q·k. If d
equals the head size D, W is initialised as the identity, and s equals scaling · q·k.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from ..engines.byte_cache import BYTE_CACHE
from ..engines.call import AttentionCall
from .common.base import LayerSizes
from .common.capabilities import About
from .common.feature_map import HeadwiseLinear, LinearMechanism
from .common.options import Options, option
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class TaylorOptions(Options):
    feature_dim: int = option(
        16,
        "d, the size of projected queries and keys; the state has 1 + d + d(d+1)/2 rows",
        "features",
        parity="even",
        most=64,
    )


@register_mechanism("taylor")
class Taylor(LinearMechanism):
    about = About(
        summary="the second-order Taylor polynomial of exp(q·k) on queries and keys projected to a few dimensions",
        paper="Arora et al. 2024, Simple linear attention language models (Based), §4.1",
        when="you linearise a decoder (Based): closest to softmax for small products, with a larger state than "
        "`hedgehog`",
        engine="linear",
        cost="N·d²·D",
        sample={"feature_dim": 8},
    )
    capabilities = LinearMechanism.capabilities.but(trains=True, images="any")
    estimates_exp = True
    per_head_tensors = ("query_map.weight", "key_map.weight")
    options: TaylorOptions

    def __init__(self, sizes: LayerSizes, options: TaylorOptions) -> None:
        super().__init__(sizes, options)
        self.query_map = HeadwiseLinear(sizes, options.feature_dim)
        self.key_map = HeadwiseLinear(sizes, options.feature_dim)
        self.features_per_head = 1 + options.feature_dim + options.feature_dim * (options.feature_dim + 1) // 2
        self.factor = (sizes.head_dim / options.feature_dim) ** 0.5
        """√(D / d). For projected vectors x and y, s = factor · scale · x·y with the call's scale."""
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Set W to the identity if d = D, otherwise to a random orthogonal map per head. The map is scaled so that s
        estimates scaling·q·k."""
        super().reset_parameters(generator)
        weight = self.query_map.weight
        wide, narrow = weight.shape[1:]
        if wide == narrow:
            weight.copy_(torch.eye(wide))
        else:
            share = min(1.0, narrow / wide)  # the share of a product that an orthogonal map preserves, on average
            for head in weight:
                drawn = torch.empty_like(head, dtype=torch.float32)  # there is no QR decomposition in half precision
                head.copy_(nn.init.orthogonal_(drawn, gain=(share * self.factor) ** -0.5, generator=generator))
        self.key_map.weight.copy_(weight)

    def queries(self, q: Tensor, call: AttentionCall) -> Tensor:
        return polynomial(self.query_map(q) * (call.scale_for(self.head_dim) * self.factor))

    def keys(self, k: Tensor, call: AttentionCall) -> Tensor:
        return polynomial(self.key_map(k))

    def kernel(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        left, right = q @ self.query_map.weight.to(q.dtype), k @ self.key_map.weight.to(k.dtype)
        s = left @ right.mT * (call.scale_for(self.head_dim) * self.factor)
        return 1 + s + s.square() / 2


def polynomial(x: Tensor) -> Tensor:
    """Features ``(…, 1 + d + d(d+1)/2)`` of vectors ``(…, d)``. Products of features are 1 + s + s²/2 for s = x·y."""
    d = x.shape[-1]

    def select() -> Tensor:
        """Matrices ``(2, 1 + 2d, 1 + d + d(d+1)/2)`` of one-hot columns. Each selects one factor of each feature from
        [1, x, √½ x]."""
        # pairs with the factor 1 first, then pairs of coordinates
        first, second = torch.triu_indices(d + 1, d + 1, device=x.device)
        second = second + torch.where((first == second) & (first > 0), d, 0)
        unit = torch.eye(2 * d + 1, dtype=x.dtype, device=x.device)
        return torch.stack((unit[:, first], unit[:, second]))

    factors = torch.cat((torch.ones_like(x[..., :1]), x, x * math.sqrt(0.5)), -1)
    columns = BYTE_CACHE.get(("factors of a polynomial", d, x.dtype, x.device), select)
    # matrix products select faster than indexing, above all in the backward pass
    left, right = factors @ columns[0], factors @ columns[1]
    return left * right if torch.is_grad_enabled() else left.mul_(right)
