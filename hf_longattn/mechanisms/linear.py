"""Linear attention with a fixed feature map (Katharopoulos et al. 2020, Transformers are RNNs, equations 4 to 12).

    o_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / φ(q_i) Σ_j φ(k_j)        φ(x) = elu(x) + 1  or  max(x, 0)

There is no product q·k to scale. If a model's factor on q·k, its ``scaling``, is not D^-½, q and k are each multiplied
by (scaling · √D)^½.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.batch import differentiated, no_fused_kernels, without_autocast
from ..engines.call import AttentionCall, State
from ..engines.dense import at_least_fp32
from .common.capabilities import About
from .common.feature_map import LinearMechanism
from .common.options import Options, option
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class LinearOptions(Options):
    feature_map: str = option(
        "elu", "φ: elu is elu(x) + 1, as in the paper; relu is max(x, 0)", choices=("elu", "relu")
    )


@register_mechanism("linear")
class Linear(LinearMechanism):
    about = About(
        summary="φ(q)(φ(k)ᵀv) with a fixed positive feature map in place of softmax",
        paper="Katharopoulos et al. 2020, Transformers are RNNs, eq. 4-12",
        when="you train or distil, and speed and a constant state matter more than exact recall",
        engine="linear",
        cost="N·D²",
    )
    capabilities = LinearMechanism.capabilities.but(images="any", exports=True)
    per_head_tensors = ()
    options: LinearOptions

    def advance(
        self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall
    ) -> tuple[Tensor, State]:
        """:meth:`LinearMechanism.advance`. For one token, a third of the operations: their number limits the decoding
        speed on a GPU."""
        if state is None or q.shape[2] > 1 or call.dropout or differentiated(q, k, v):
            return super().advance(q, k, v, state, call)
        with without_autocast(q):
            # The features of queries and keys, in one call.
            batch, heads, _, _ = q.shape
            groups = k.shape[1]  # key heads
            vectors = torch.cat([q.flatten(0, 2), k.flatten(0, 2)])
            phi_q, phi_k = self.queries(at_least_fp32(vectors), call).split([batch * heads, batch * groups])
            phi_k = phi_k.view(batch, groups, -1)
            if call.key_mask is not None:
                phi_k = phi_k * call.key_mask[:, None]

            # The state with the new token, and the output from it.
            sums, values = state["kv"], at_least_fp32(v).flatten(0, 1)
            kv = torch.baddbmm(sums.flatten(0, 1), phi_k.view(-1, phi_k.shape[2], 1), values).view_as(sums)
            z = state["z"] + phi_k
            rows = phi_q.view(batch, groups, -1, phi_k.shape[2])  # the query heads of a group are rows of one product
            weight = rows @ z[..., None]
            out = rows @ kv / weight.clamp(min=torch.finfo(weight.dtype).tiny)  # no feature is negative
        return out.reshape(*q.shape[:3], v.shape[3]).to(q.dtype), {"kv": kv, "z": z}

    def queries(self, q: Tensor, call: AttentionCall) -> Tensor:
        x = self.scaled(q, call)
        if self.options.feature_map == "relu":
            return F.relu(x)
        if no_fused_kernels() is not None:
            return elu_plus_one(x)
        features: Tensor = _EluPlusOne.apply(x)
        return features

    def keys(self, k: Tensor, call: AttentionCall) -> Tensor:
        return self.queries(k, call)

    def kernel(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        phi = torch.relu if self.options.feature_map == "relu" else elu_plus_one
        return phi(self.scaled(q, call)) @ phi(self.scaled(k, call)).mT


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1, computed as exp(x) below zero, where the sum would lose digits."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


class _EluPlusOne(torch.autograd.Function):
    """:func:`elu_plus_one`, with the derivative min(elu(x) + 1, 1). Saves only the result for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clamp(max=0).exp_().add_(x.clamp(min=0))
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0].clamp(max=1)
