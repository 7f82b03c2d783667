"""The block mask of the flex implementation: exactly the visited blocks, full ones marked as full."""

from __future__ import annotations

import torch
from torch.nn.attention.flex_attention import create_block_mask

from scripts.dev.benchmarks.attention import block_mask
from scripts.dev.benchmarks.case import AttentionInputs, Case
from scripts.dev.benchmarks.definition import mask_of
from tests.cases import every_case


@every_case("length", [128, 300, 640])
@every_case("causal", [False, True])
@every_case("mechanism", ["window", "longformer", "full"])
def test_block_mask_of_the_flex_benchmark_is_that_of_torch(length: int, causal: bool, mechanism: str) -> None:
    options = {} if mechanism == "full" else {"window": 200}
    mask = mask_of(AttentionInputs(Case(mechanism, options, length=length, heads=1, head_dim=4, causal=causal)))
    assert mask is not None
    ours, theirs = block_mask(mask, length, "cpu"), create_block_mask(mask, 1, 1, length, length, device="cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert int(ours.kv_num_blocks.sum() + ours.full_kv_num_blocks.sum()) == int(
        theirs.kv_num_blocks.sum() + theirs.full_kv_num_blocks.sum()
    )
    assert ours.shape == theirs.shape
