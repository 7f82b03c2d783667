"""`transformer_xl`: what a segment sees, where gradients stop, and one call being the same as its segments one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.errors import OptionError
from tests.cells import every_cell
from tests.mechanisms.listed import image, visible


def drawn(length: int, causal: bool, **options) -> list[str]:
    mechanism = build_mechanism("transformer_xl", num_heads=1, head_dim=4, **options)
    return image(visible(mechanism, length, causal)[0, 0])


def distance(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return score - 0.1 * (i - j)


def test_a_segment_and_the_memory_before_it() -> None:
    causal = ["#.......", "##......", "###.....", ".###....", ".####...", ".#####..", "....###.", "....####"]
    assert drawn(8, True, segment_length=3, memory_length=2) == causal
    assert drawn(8, False, segment_length=3, memory_length=2) == ["###....."] * 3 + [".#####.."] * 3 + ["....####"] * 2


@every_cell("causal", [False, True])
@every_cell("length", [70, 400])
@every_cell("side", ["none", "left", "right"])
def test_gradients_stop_at_the_border(length: int, causal: bool, side: str) -> None:
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


def test_only_the_own_segment_has_gradients() -> None:
    q, k, v = (torch.randn(1, 1, 300, 8, requires_grad=True) for _ in range(3))
    out = attend(q, k, v, "transformer_xl", causal=True, segment_length=100, memory_length=100)
    for x in torch.autograd.grad(out[:, :, 200:].sum(), (k, v)):
        assert (x[:, :, :200] == 0).all()
        assert (x[:, :, 200:] != 0).any()


def test_one_call_equals_segment_after_segment() -> None:
    q, k, v = (torch.randn(1, 2, 200, 8) for _ in range(3))
    whole = attend(q, k, v, "transformer_xl", causal=True, segment_length=50, memory_length=30)
    for first in range(0, 200, 50):
        seen = slice(max(0, first - 30), first + 50)
        segment = attend(q[:, :, first : first + 50], k[:, :, seen], v[:, :, seen], "full", causal=True)
        torch.testing.assert_close(whole[:, :, first : first + 50], segment, atol=1e-5, rtol=0)


def test_without_memory_segments_stand_alone() -> None:
    q, k, v = (torch.randn(2, 2, 300, 8, requires_grad=True) for _ in range(3))
    assert not build_mechanism("transformer_xl", num_heads=2, head_dim=8, segment_length=64, memory_length=0).traits.stops_gradients(300)
    for causal in (False, True):
        out = attend(q, k, v, "transformer_xl", causal=causal, segment_length=64, memory_length=0)
        expected = attend(q, k, v, "segmented", causal=causal, block_size=64, integration="none")
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
        weight = torch.randn_like(out)
        gradients = (torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (out, expected))
        for got, wanted in zip(*gradients, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_pairs_are_counted() -> None:
    for causal in (False, True):
        for length in (1, 24, 25, 100):
            mechanism = build_mechanism("transformer_xl", num_heads=1, head_dim=4, segment_length=24, memory_length=40)
            seen = visible(mechanism, length, causal)
            assert mechanism.pairs(length, causal) == seen.sum()


def test_bad_options() -> None:
    with pytest.raises(OptionError, match=r"'segment_length'.*at least 1"):
        build_mechanism("transformer_xl", num_heads=1, head_dim=4, segment_length=0)
    with pytest.raises(OptionError, match=r"'memory_length'.*at least 0"):
        build_mechanism("transformer_xl", num_heads=1, head_dim=4, memory_length=-1)
