"""`segmented`: what blocks see of each other, and that a summary is what the definition says."""

from __future__ import annotations

import pytest
import torch

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.errors import OptionError
from tests.cells import every_cell
from tests.mechanisms.listed import image, visible


def drawn(length: int, causal: bool, **options) -> list[str]:
    mechanism = build_mechanism("segmented", num_heads=1, head_dim=4, **options)
    return image(visible(mechanism, length, causal)[0, 0])


def test_blocks_and_their_neighbours() -> None:
    assert drawn(8, False, block_size=3, integration="none") == [
        "###.....",
        "###.....",
        "###.....",
        "...###..",
        "...###..",
        "...###..",
        "......##",
        "......##",
    ]
    assert drawn(8, True, block_size=2, integration="previous") == [
        "#.......",
        "##......",
        "###.....",
        "####....",
        "..###...",
        "..####..",
        "....###.",
        "....####",
    ]
    assert drawn(8, False, block_size=2, integration="previous") == [
        "####....",
        "####....",
        "######..",
        "######..",
        "..######",
        "..######",
        "....####",
        "....####",
    ]


@every_cell("causal", [False, True])
@every_cell("integration", ["pooled", "attention"])
def test_summaries_are_averages_under_one_softmax(integration: str, causal: bool) -> None:
    """The third block of three, written out with plain loops."""
    size, length = 4, 11
    q, k, v = (torch.randn(1, 1, length, 8, dtype=torch.float64) for _ in range(3))
    keys, values = [], []
    for first in (0, 4):
        block, content = k[0, 0, first : first + size], v[0, 0, first : first + size]
        share = torch.full((size,), 1 / size, dtype=torch.float64)
        if integration == "attention":
            share = ((block @ block.mean(0)) * 8**-0.5).softmax(0)
        keys.append(share @ block)
        values.append(share @ content)
    for i in range(8, length):
        own = slice(8, i + 1 if causal else length)
        weights = (torch.cat([torch.stack(keys), k[0, 0, own]]) @ q[0, 0, i] * 8**-0.5).softmax(0)
        expected = weights @ torch.cat([torch.stack(values), v[0, 0, own]])
        out = attend(q, k, v, "segmented", causal=causal, block_size=size, integration=integration)
        torch.testing.assert_close(out[0, 0, i], expected)


@every_cell("causal", [False, True])
@every_cell("side", ["left", "right", "inside"])
@every_cell("integration", ["none", "previous", "attention"])
def test_the_other_integrations_equal_the_definition(integration: str, side: str, causal: bool) -> None:
    length = 300
    q, k, v = (torch.randn(2, heads, length, 16, requires_grad=True) for heads in (4, 2, 2))
    padding = torch.ones(2, length, dtype=torch.bool)
    padding[0, {"left": slice(90), "right": slice(200, None), "inside": slice(50, 140)}[side]] = False
    arguments = {"causal": causal, "padding_mask": padding, "block_size": 24, "integration": integration, "scaling": 0.3}
    real = padding[:, None, :, None]
    out, expected = (function(q, k, v, "segmented", **arguments) * real for function in (attend, reference_attend))
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=0)
    weight = torch.randn_like(out)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (out, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=0)


@pytest.mark.parametrize("integration", ["pooled", "attention"])
def test_padding_inside_a_block_enters_no_summary(integration: str) -> None:
    q, k, v = (torch.randn(1, 2, 300, 8) for _ in range(3))
    padding = torch.ones(1, 300, dtype=torch.bool)
    padding[0, 30:40] = False
    arguments = {"padding_mask": padding, "block_size": 32, "integration": integration}
    before = attend(q, k, v, "segmented", **arguments)
    k[:, :, 30:40], v[:, :, 30:40] = 1e4, -1e4
    torch.testing.assert_close(attend(q, k, v, "segmented", **arguments)[:, :, 40:], before[:, :, 40:], atol=0, rtol=0)


def test_weights_of_a_summary_are_spread_over_its_block() -> None:
    q, k = (torch.randn(1, 1, 12, 8) for _ in range(2))
    weights = build_mechanism("segmented", num_heads=1, head_dim=8, block_size=4, integration="pooled").weights(q, k)[0, 0]
    torch.testing.assert_close(weights.sum(-1), torch.ones(12))
    assert torch.equal(weights[0, 4:8], weights[0, 4].expand(4))
    assert not torch.equal(weights[5, 4:8], weights[5, 4].expand(4))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"block_size": 0}, "'block_size' of mechanism 'segmented' is 0"),
        ({"integration": "pool"}, "Did you mean 'pooled'"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        build_mechanism("segmented", num_heads=1, head_dim=4, **options)


@pytest.mark.parametrize("length", [60, 300])
def test_summaries_weigh_half_precision_nearly_as_exactly_as_fused_attention(length: int) -> None:
    """A summary is a key and a value in the inputs' precision, as a cache keeps it: that rounding alone is left."""
    torch.manual_seed(0)
    q, k, v = (size * torch.randn(2, 4, length, 16) for size in (4.0, 4.0, 1.0))
    q, k, v = (x.bfloat16() for x in (q, k, v))
    own = error(attend(q, k, v, "full"), reference_attend(q, k, v, "full"))
    options = {"block_size": 16, "integration": "attention"}
    assert error(attend(q, k, v, "segmented", **options), reference_attend(q, k, v, "segmented", **options)) < 6 * own


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).square().mean().sqrt())


@pytest.mark.parametrize("causal", [False, True])
def test_summaries_in_half_precision_are_rounded_once(causal: bool) -> None:
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
