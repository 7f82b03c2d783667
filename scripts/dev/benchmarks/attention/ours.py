"""Our attention, from q, k, v."""

from __future__ import annotations

from torch import Tensor

from hf_longattn.attend import attend

from ..case import AttentionInputs
from ..implementations import Implementation, register_implementation


@register_implementation("attention", "longattn")
class Ours(Implementation):
    """``attend(q, k, v, mechanism)``."""

    summary = "attend() of this package"

    def __init__(self, inputs: AttentionInputs) -> None:
        self.inputs = inputs
        self.leaves = inputs.qkv
        self.upstream = inputs.upstream_heads()

    def forward(self) -> Tensor:
        return attend(*self.inputs.qkv, self.inputs.mechanism, causal=self.inputs.case.causal, **self.inputs.beyond)
