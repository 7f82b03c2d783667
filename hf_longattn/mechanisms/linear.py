"""Linear attention with a fixed feature map (Katharopoulos et al. 2020, Transformers are RNNs, equations 4 to 12).

    o_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / φ(q_i) Σ_j φ(k_j)        φ(x) = elu(x) + 1  or  max(x, 0)

There is no product q·k to scale: a ``scaling`` other than D^-½ multiplies q and k by (scaling · √D)^½ each, as it would their product.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.call import AttentionCall
from .feature_map import LinearMechanism, elu_plus_one
from .options import Options, option
from .registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class LinearOptions(Options):
    feature_map: str = option("elu", "φ: elu is elu(x) + 1, as in the paper; relu is max(x, 0)", choices=("elu", "relu"))


@register_mechanism("linear")
class Linear(LinearMechanism):
    """Every query sees every key, with weights that are products of features."""

    summary = "φ(q)(φ(k)ᵀv) with a fixed positive feature map in place of softmax"
    paper = "Katharopoulos et al. 2020, Transformers are RNNs, eq. 4-12"
    options_type = LinearOptions
    options: LinearOptions

    def queries(self, q: Tensor, call: AttentionCall) -> Tensor:
        q = self.scaled(q, call)
        return F.relu(q) if self.options.feature_map == "relu" else _EluPlusOne.apply(q)

    def keys(self, k: Tensor, call: AttentionCall) -> Tensor:
        return self.queries(k, call)

    def kernel(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        phi = torch.relu if self.options.feature_map == "relu" else elu_plus_one
        return phi(self.scaled(q, call)) @ phi(self.scaled(k, call)).mT


class _EluPlusOne(torch.autograd.Function):
    """elu(x) + 1, whose derivative is min(elu(x) + 1, 1): only the result is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clamp(max=0).exp_().add_(x.clamp(min=0))
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return grads[0] * out.clamp(max=1)
