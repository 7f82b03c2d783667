"""The attention of the package nystrom-attention, with the same landmarks, iterations and convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_longattn.mechanisms.nystrom import Nystrom

from ..case import AttentionInputs
from ..implementations import Implementation, LeftOut, register_implementation

KERNEL = 33
"""Its convolution's width, which cannot be left out of the comparison: it is there or not by a switch."""


@register_implementation("attention", "nystrom-attention")
class NystromAttention(Implementation):
    """Its own projections are replaced by ours' results. Its pseudo-inverse starts elsewhere, so after few iterations the outputs differ
    and are not compared; the work is the same."""

    summary = "NystromAttention of nystrom-attention without its projections, same landmarks, iterations and convolution"
    computes = ""

    def __init__(self, inputs: AttentionInputs) -> None:
        case = inputs.case
        if not isinstance(inputs.mechanism, Nystrom):
            raise LeftOut("it computes the mechanism nystrom")
        try:
            from nystrom_attention import NystromAttention as Theirs
        except ImportError:
            raise LeftOut("it is not installed: pip install nystrom-attention") from None
        options = inputs.mechanism.options
        self.module = Theirs(
            dim=case.hidden_size,
            dim_head=case.head_dim,
            heads=case.heads,
            num_landmarks=options.num_landmarks,
            pinv_iterations=options.iterations,
            residual=options.conv_kernel is not None,
            residual_conv_kernel=options.conv_kernel or KERNEL,
        )
        self.module.to_qkv = self.module.to_out = nn.Identity()
        self.module.to(case.device, case.torch_dtype).requires_grad_(False)
        self.inputs = inputs
        self.packed = torch.cat([x.detach().transpose(1, 2).flatten(2) for x in inputs.qkv], -1).requires_grad_(case.backward)
        self.leaves = (self.packed,)
        self.upstream = inputs.upstream_heads()

    def forward(self) -> Tensor:
        return self.inputs.split(self.module(self.packed))
