"""adaptive_span, hierarchical and transformer_xl: spans, levels and segments against their definitions."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.mechanisms.adaptive_span import AdaptiveSpan
from hf_longattn.mechanisms.common.capabilities import keys_per_query
from tests.cases import every_case
from tests.mechanisms.definition import assert_equals_its_definition, visible

FRACTIONS = (0.0, 0.137, 0.771, 0.5)


def spanned(
    max_span: int = 100, ramp: int = 10, fractions: tuple[float, ...] = FRACTIONS, **options: Any
) -> AdaptiveSpan:
    module = build_mechanism(
        "adaptive_span", num_heads=len(fractions), head_dim=16, max_span=max_span, ramp=ramp, **options
    )
    assert isinstance(module, AdaptiveSpan)
    module.span_fraction.data.copy_(torch.tensor(fractions))
    return module


def inputs(length: int, q_len: int | None = None, heads: int = 4) -> list[Tensor]:
    return [
        torch.randn(2, h, n, 16, requires_grad=True) for h, n in ((heads, q_len or length), (2, length), (2, length))
    ]


@every_case("causal", [False, True], pairs=True)
@every_case(("length", "q_len"), [(50, 50), (517, 517), (517, 290)])
@every_case("moved", [False, True])
def test_adaptive_span_output_and_gradients_equal_the_definition(
    length: int, q_len: int, causal: bool, moved: bool
) -> None:
    module = spanned()
    q, k, v = inputs(length, q_len)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, : length // 7] = False
    mask[1, length - 10 :] = False

    def nearer(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - 0.02 * (h + 1) * (i - j).abs()

    arguments = {"causal": causal, "padding_mask": mask, "score_mod": nearer if moved else None}
    out, expected = attend(q, k, v, module, **arguments), reference_attend(q, k, v, module, **arguments)
    real = mask[:, None, -q_len:, None]
    torch.testing.assert_close(out * real, (expected * real).float(), atol=1e-5, rtol=0)
    leaves, weight = (q, k, v, module.span_fraction), torch.randn_like(expected) * real
    got, wanted = (torch.autograd.grad((x * weight).sum(), leaves) for x in (out, expected))
    for a, b in zip(got[:3], wanted[:3], strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=0)
    torch.testing.assert_close(got[3], wanted[3], atol=1e-3, rtol=1e-4)


def test_adaptive_span_visits_only_the_keys_that_the_longest_span_reaches() -> None:
    module = spanned(4096, 10, (0.01, 0.005))
    assert module.pattern(True).left == 50  # 40.96 + 10, rounded up, less the query itself
    with torch.no_grad():
        module.span_fraction.add_(0.01)
    assert module.pattern(True).left == 91, "read again when the parameter has changed"
    assert module.pairs(1000, True) == sum(min(i, 91) + 1 for i in range(1000))
    assert keys_per_query(module) == 4096 + 10


def test_adaptive_span_fractions_stay_between_0_and_1() -> None:
    module = spanned(100, 10, (-0.2, 1.3))
    q, k, v = inputs(300, heads=2)
    assert module.spans.tolist() == [0.0, 100.0]
    torch.testing.assert_close(
        attend(q, k, v, module.eval()), attend(q, k, v, spanned(100, 10, (0.0, 1.0)).eval()), atol=0, rtol=0
    )
    assert module.span_fraction[1] > 1, "nothing is written in evaluation"
    attend(q, k, v, module.train())
    assert module.span_fraction.tolist() == [0.0, 1.0]


def test_the_loss_term_of_adaptive_span_shortens_spans_that_nothing_needs() -> None:
    module = spanned(100, 10, (0.5, 0.7), span_loss_weight=0.01)
    loss = module.auxiliary_loss()
    torch.testing.assert_close(loss, torch.tensor(0.01 * 60.0))
    loss.backward()
    torch.testing.assert_close(module.span_fraction.grad, torch.full((2,), 0.01 * 100 / 2))
    optimizer = torch.optim.SGD([module.span_fraction], lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        module.auxiliary_loss().backward()
        optimizer.step()
        attend(*inputs(70, heads=2), mechanism=module)
    assert module.spans.tolist() == [0.0, 0.0]


@every_case("how", ["data", "data_copy", "foreach", "swap", "load"])
def test_the_band_of_adaptive_span_follows_spans_written_in_any_way(how: str) -> None:
    module = spanned(200, 10, (0.1, 0.1, 0.2, 0.1)).eval()
    q, k, v = (x.detach() for x in inputs(400))
    attend(q, k, v, module)
    grown = torch.tensor((0.9, 0.4, 0.2, 0.7))
    parameter = module.span_fraction
    with torch.no_grad():
        if how == "data":
            parameter.data = grown
        elif how == "data_copy":
            parameter.data.copy_(grown)
        elif how == "foreach":
            torch._foreach_copy_([parameter], [grown])
        elif how == "swap":
            module.span_fraction = torch.nn.Parameter(grown)
        else:
            module.load_state_dict({"span_fraction": grown}, assign=True)
        torch.testing.assert_close(
            attend(q, k, v, module), reference_attend(q, k, v, module).float(), atol=1e-5, rtol=0
        )


def levels(length: int, block: int, limit: int | None = None) -> Tensor:
    positions = torch.arange(length)
    module = build_mechanism("hierarchical", num_heads=1, head_dim=8, block_size=block, levels=limit)
    return module.pyramid(length).level_of(positions[:, None], positions[None])


def test_the_level_of_a_pair_in_hierarchical_grows_with_its_distance() -> None:
    found = levels(64, 4)
    assert found[0].tolist() == [0] * 8 + [1] * 8 + [2] * 16 + [3] * 32
    assert found[15].tolist() == [1] * 8 + [0] * 12 + [1] * 4 + [2] * 8 + [3] * 32
    assert torch.equal(found, found.T)
    assert levels(64, 4, 2)[0].tolist() == [0] * 8 + [1] * 56, "the last level takes all the rest"
    assert levels(64, 4, 1).max() == 0


@every_case("causal", [False, True])
@every_case("options", [{"levels": 2}, {"levels": 3}], ids=str)
def test_hierarchical_options_with_padding_equal_the_definition(options: dict[str, Any], causal: bool) -> None:
    q, k, v = [torch.randn(2, heads, 517, 16) for heads in (4, 2, 2)]
    mask = torch.ones(2, 517, dtype=torch.bool)
    mask[0, :77] = False
    mask[1, 400:] = False
    mask[1, 100:121] = False
    module = build_mechanism("hierarchical", num_heads=4, head_dim=16, block_size=8, **options)
    assert_equals_its_definition(module, *(x.requires_grad_() for x in (q, k, v)), mask, causal=causal)


def test_pairs_of_hierarchical_grow_as_n_log_n() -> None:
    module = build_mechanism("hierarchical", num_heads=1, head_dim=8, block_size=64)
    per_token = [module.pairs(n) / n for n in (4096, 8192, 16384, 32768)]
    steps = [b - a for a, b in itertools.pairwise(per_token)]
    assert all(90 < step < 100 for step in steps), "one and a half blocks more for each doubling"


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
    arguments = {
        "causal": causal,
        "padding_mask": mask,
        "score_mod": distance,
        "segment_length": 16,
        "memory_length": 24,
    }
    found, wanted = (
        attend(q, k, v, "transformer_xl", **arguments),
        reference_attend(q, k, v, "transformer_xl", **arguments),
    )
    crossing = attend(q, k, v, "transformer_xl", bptt=True, **arguments)
    real = mask[:, None, :, None]
    torch.testing.assert_close(found * real, wanted * real, atol=1e-9, rtol=0)
    torch.testing.assert_close(found * real, crossing * real, atol=1e-9, rtol=0)
    weight = torch.randn_like(found) * real
    of_found, of_wanted, of_crossing = (
        torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (found, wanted, crossing)
    )
    for a, b in zip(of_found, of_wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)
    assert not torch.allclose(of_found[1], of_crossing[1])


def test_transformer_xl_without_memory_equals_segments_alone() -> None:
    q, k, v = (torch.randn(2, 2, 300, 8, requires_grad=True) for _ in range(3))
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
