"""The LSH attention of the package reformer-pytorch, with the same bucket size and number of hash rounds."""

from __future__ import annotations

from torch import Tensor

from hf_longattn.mechanisms.lsh import LSH

from ..case import AttentionInputs
from ..implementations import Implementation, LeftOut, register_implementation


@register_implementation("attention", "reformer-pytorch")
class ReformerPytorch(Implementation):
    """Its hashes differ from ours, so outputs are not compared; the work is the same."""

    summary = "LSHAttention of reformer-pytorch (shared queries and keys), same bucket size and rounds, different hashes"
    computes = ""

    def __init__(self, inputs: AttentionInputs) -> None:
        case = inputs.case
        if not isinstance(inputs.mechanism, LSH):
            raise LeftOut("it computes the mechanism lsh")
        try:
            from reformer_pytorch import LSHAttention
        except ImportError:
            raise LeftOut("it is not installed: pip install reformer-pytorch") from None
        options = inputs.mechanism.options
        if case.length % (2 * options.bucket_size):
            raise LeftOut(f"it takes lengths that are multiples of twice the bucket size, {2 * options.bucket_size}")
        self.module = LSHAttention(bucket_size=options.bucket_size, n_hashes=options.num_hashes, causal=case.causal)
        self.inputs = inputs
        self.leaves = (inputs.qkv[0], inputs.qkv[2])
        self.upstream = inputs.upstream_heads()

    def forward(self) -> Tensor:
        q, _, v = self.inputs.qkv
        output = self.module(q.flatten(0, 1), v.flatten(0, 1))[0]
        return output.view(q.shape)
