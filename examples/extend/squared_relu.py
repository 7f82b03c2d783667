"""Squared ReLU features (Author et al. 2030, equation 2): φ(x) = max(x, 0)², κ(q, k) = φ(q)·φ(k)."""

from __future__ import annotations

from torch import Tensor

from hf_longattn.engines.call import AttentionCall
from hf_longattn.mechanisms.common.capabilities import About
from hf_longattn.mechanisms.common.feature_map import LinearMechanism
from hf_longattn.mechanisms.common.registry import register_mechanism


@register_mechanism("squared_relu")
class SquaredRelu(LinearMechanism):
    """Every query sees every key, with weights that are products of squared ReLU features."""

    about = About(
        summary="linear attention with squared ReLU features",
        paper="Author et al. 2030, eq. 2",
        when="the text is long, and a state of constant size is enough",
        engine="linear",
        cost="N·D²",
    )
    per_head_tensors = ()

    def queries(self, q: Tensor, call: AttentionCall) -> Tensor:
        return q.relu().square()

    def keys(self, k: Tensor, call: AttentionCall) -> Tensor:
        return k.relu().square()

    def kernel(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return q.clamp(min=0).square() @ k.clamp(min=0).square().mT
