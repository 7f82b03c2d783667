"""Our attention, from q, k, v; and with the three projections, against whole self-attention modules."""

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

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, self.inputs.mechanism, causal=self.inputs.case.causal, **self.inputs.beyond)

    def forward(self) -> Tensor:
        return self.attend(*self.inputs.qkv)


@register_implementation("attention", "longattn+projections")
class OursWithProjections(Ours):
    """The same, starting from hidden states."""

    summary = "query, key and value projections, then attend() of this package"

    def __init__(self, inputs: AttentionInputs) -> None:
        super().__init__(inputs)
        self.leaves = (inputs.hidden,)

    def forward(self) -> Tensor:
        hidden = self.inputs.hidden
        q, k, v = (self.inputs.split(projection(hidden)) for projection in self.inputs.projections)
        return self.attend(q, k, v)
