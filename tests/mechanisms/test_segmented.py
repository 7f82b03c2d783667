"""`segmented`: every integration against the definition, and summaries in half precision."""

from __future__ import annotations

import pytest
import torch

from hf_longattn import attend, build_mechanism, reference_attend
from tests.cases import every_case
from tests.mechanisms.definition import assert_equals_its_definition


@every_case("causal", [False, True], pairs=True)
@every_case("side", ["left", "right", "inside"])
@every_case("integration", ["none", "previous", "pooled", "attention"])
def test_every_integration_of_segmented_equals_the_definition(integration: str, side: str, causal: bool) -> None:
    length = 300
    q, k, v = (torch.randn(2, heads, length, 16, requires_grad=True) for heads in (4, 2, 2))
    padding = torch.ones(2, length, dtype=torch.bool)
    padding[0, {"left": slice(90), "right": slice(200, None), "inside": slice(50, 140)}[side]] = False
    module = build_mechanism("segmented", num_heads=4, head_dim=16, block_size=24, integration=integration)
    assert_equals_its_definition(module, q, k, v, padding, causal=causal, scaling=0.3)


@pytest.mark.parametrize("causal", [False, True])
def test_summaries_of_segmented_in_half_precision_are_rounded_once(causal: bool) -> None:
    """Weights in half precision would add up to something other than 1, and scores of this size double the error."""
    torch.manual_seed(0)
    q, k, v = (scale * torch.randn(2, 4, 260, 16, dtype=torch.float64) for scale in (4.0, 4.0, 1.0))
    options = {"block_size": 24, "integration": "attention"}
    for dtype in (torch.bfloat16, torch.float16):
        inputs = [x.to(dtype) for x in (q, k, v)]
        found, expected = (
            attend(*inputs, "segmented", causal=causal, **options),
            reference_attend(*inputs, "segmented", causal=causal, **options),
        )
        fused = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=causal)
        exact = torch.nn.functional.scaled_dot_product_attention(*(x.double() for x in inputs), is_causal=causal)
        error, of_fused = ((a - b).norm() / b.norm() for a, b in ((found, expected), (fused, exact)))
        assert error < 2.7 * of_fused
