"""The FAVOR+ attention of the package performer-pytorch, with the same number of random features and the same directions."""

from __future__ import annotations

from torch import Tensor

from hf_longattn.mechanisms.performer import Performer

from ..case import AttentionInputs
from ..implementations import Implementation, LeftOut, register_implementation


@register_implementation("attention", "performer-pytorch")
class PerformerPytorch(Implementation):
    """Adds 1e-4 to every feature, so that its outputs are near ours rather than equal and are not compared; the work is the same. Its
    causal form is the one without its CUDA extension."""

    summary = "FastAttention of performer-pytorch, same random features"
    computes = ""

    def __init__(self, inputs: AttentionInputs) -> None:
        if not isinstance(inputs.mechanism, Performer):
            raise LeftOut("it computes the mechanism performer")
        try:
            from performer_pytorch import FastAttention
        except ImportError:
            raise LeftOut("it is not installed: pip install performer-pytorch") from None
        case, options = inputs.case, inputs.mechanism.options
        relu = options.kernel == "relu"
        self.module = FastAttention(case.head_dim, options.num_features, causal=case.causal, generalized_attention=relu)
        self.module.projection_matrix = inputs.mechanism.projection.clone()
        self.inputs = inputs
        self.leaves = inputs.qkv
        self.upstream = inputs.upstream_heads()

    def forward(self) -> Tensor:
        return self.module(*self.inputs.qkv)
