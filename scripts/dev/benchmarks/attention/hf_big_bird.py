"""The block-sparse self-attention of transformers' own BigBird, with our projections."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_longattn.mechanisms.bigbird import BigBird

from ..case import AttentionInputs
from ..implementations import Implementation, LeftOut, register_implementation


@register_implementation("attention", "hf-big-bird")
class HFBigBird(Implementation):
    """Starts from hidden states, so it is compared with our attention plus the same three projections. In evaluation, where transformers
    gathers the first block in place of each random block."""

    summary = "BigBirdBlockSparseAttention of transformers in evaluation"
    baseline = "longattn+projections"

    def __init__(self, inputs: AttentionInputs) -> None:
        case = inputs.case
        if not isinstance(inputs.mechanism, BigBird) or inputs.mechanism.options.random_pattern != "hf_eval":
            raise LeftOut("its blocks are those of mechanism bigbird with random_pattern=hf_eval")
        options = inputs.mechanism.options
        if case.length % options.block_size or inputs.mechanism.covers(case.length) or case.num_globals:
            raise LeftOut(f"its block-sparse form takes more than {case.length} tokens, multiples of {options.block_size}, no globals")
        from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdConfig, BigBirdModel

        config = BigBirdConfig(
            hidden_size=case.hidden_size,
            num_attention_heads=case.heads,
            block_size=options.block_size,
            num_random_blocks=options.num_random_blocks,
            max_position_embeddings=case.length,
            attention_probs_dropout_prob=0.0,
        )
        self.module = BigBirdBlockSparseAttention(config).to(case.device, case.torch_dtype).requires_grad_(False).eval()
        for name, projection in zip(("query", "key", "value"), inputs.projections, strict=True):
            getattr(self.module, name).load_state_dict(projection.state_dict())
        self.inputs = inputs
        self.leaves = (inputs.hidden,)
        self.upstream = inputs.upstream_heads()
        ones = torch.ones(case.batch, case.length, device=case.device, dtype=case.torch_dtype)
        blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(ones, options.block_size)
        self.masks = (band, rows, columns, blocked, blocked)

    def forward(self) -> Tensor:
        return self.inputs.split(self.module(self.inputs.hidden, *self.masks)[0])
