"""`transformer_xl`: where gradients stop, segments without memory, and the number of pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.mechanisms.transformer_xl import TransformerXL, TransformerXLOptions
from tests.cases import every_case
from tests.mechanisms.listed import visible


def distance(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return score - 0.1 * (i - j)


@every_case("causal", [False, True])
@every_case("length", [70, 400])
@every_case("side", ["none", "left", "right"])
def test_transformer_xl_gradients_stop_at_the_border_of_a_segment(length: int, causal: bool, side: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, : length // 3] = side != "left"
    mask[0, length - length // 4 :] = side != "right"
    arguments = {"causal": causal, "padding_mask": mask, "score_mod": distance, "segment_length": 16, "memory_length": 24}
    found, wanted = attend(q, k, v, "transformer_xl", **arguments), reference_attend(q, k, v, "transformer_xl", **arguments)
    crossing = attend(q, k, v, "transformer_xl", bptt=True, **arguments)
    real = mask[:, None, :, None]
    torch.testing.assert_close(found * real, wanted * real, atol=1e-9, rtol=0)
    torch.testing.assert_close(found * real, crossing * real, atol=1e-9, rtol=0)
    weight = torch.randn_like(found) * real
    of_found, of_wanted, of_crossing = (torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (found, wanted, crossing))
    for a, b in zip(of_found, of_wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)
    assert not torch.allclose(of_found[1], of_crossing[1])


def test_transformer_xl_without_memory_equals_segments_alone() -> None:
    q, k, v = (torch.randn(2, 2, 300, 8, requires_grad=True) for _ in range(3))
    assert not TransformerXL(2, 8, 16, None, TransformerXLOptions(64, 0)).stops_gradients(300)
    for causal in (False, True):
        out = attend(q, k, v, "transformer_xl", causal=causal, segment_length=64, memory_length=0)
        expected = attend(q, k, v, "segmented", causal=causal, block_size=64, integration="none")
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
        weight = torch.randn_like(out)
        gradients = (torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (out, expected))
        for got, wanted in zip(*gradients, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_transformer_xl_pairs_are_the_number_of_visible_keys() -> None:
    for causal in (False, True):
        for length in (1, 24, 25, 100):
            mechanism = build_mechanism("transformer_xl", num_heads=1, head_dim=4, segment_length=24, memory_length=40)
            seen = visible(mechanism, length, causal)
            assert mechanism.pairs(length, causal) == seen.sum()
