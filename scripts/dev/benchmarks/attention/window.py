"""Our window of the same width, without global tokens: shows what the global tokens cost."""

from __future__ import annotations

from torch import Tensor

from hf_longattn.attend import attend
from hf_longattn.mechanisms import build_mechanism

from ..case import AttentionInputs
from ..definition import band_of
from ..implementations import Implementation, register_implementation


@register_implementation("attention", "window")
class Window(Implementation):
    """``attend(q, k, v, "window")`` with the width of the measured mechanism's band."""

    summary = "attend() of this package with the window alone"
    computes = "band"

    def __init__(self, inputs: AttentionInputs) -> None:
        case = inputs.case
        band = band_of(inputs)
        self.mechanism = build_mechanism(
            "window", num_heads=case.heads, head_dim=case.head_dim, window=band.left + (1 if case.causal else band.right)
        )
        self.causal = case.causal
        self.qkv = self.leaves = inputs.qkv
        self.upstream = inputs.upstream_heads()

    def forward(self) -> Tensor:
        return attend(*self.qkv, self.mechanism, causal=self.causal)
