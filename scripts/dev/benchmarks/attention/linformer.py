"""The self-attention of the package linformer, with the same rank, from hidden states."""

from __future__ import annotations

from torch import Tensor, nn

from hf_longattn.mechanisms.linformer import Linformer

from ..case import AttentionInputs
from ..implementations import Implementation, LeftOut, register_implementation


@register_implementation("attention", "linformer")
class LinformerPackage(Implementation):
    """Starts from hidden states, so it is compared with our attention plus the same three projections, which are copied into it together
    with our E and F."""

    summary = "LinformerSelfAttention of linformer, same projections; its output projection left out"
    baseline = "longattn+projections"

    def __init__(self, inputs: AttentionInputs) -> None:
        case = inputs.case
        if not isinstance(inputs.mechanism, Linformer) or inputs.mechanism.options.projection != "linear":
            raise LeftOut("it computes the mechanism linformer with a linear projection")
        options = inputs.mechanism.options
        if options.sharing != "headwise":
            raise LeftOut("it has one projection for keys and one for values, as sharing=headwise")
        try:
            from linformer import LinformerSelfAttention
        except ImportError:
            raise LeftOut("it is not installed: pip install linformer") from None
        self.module = LinformerSelfAttention(case.hidden_size, case.length, k=options.rank, heads=case.heads, dim_head=case.head_dim)
        for name, projection in zip(("to_q", "to_k", "to_v"), inputs.projections, strict=True):
            setattr(self.module, name, projection)
        mechanism = inputs.mechanism
        self.module.proj_k.data.copy_(mechanism.key_projection[0, : case.length])
        self.module.proj_v.data.copy_(mechanism.value_projection[0, : case.length])
        self.module.to_out = nn.Identity()
        self.module.to(case.device, case.torch_dtype).requires_grad_(False)
        self.inputs = inputs
        self.leaves = (inputs.hidden,)
        self.upstream = inputs.upstream_heads()

    def forward(self) -> Tensor:
        return self.inputs.split(self.module(self.inputs.hidden))
