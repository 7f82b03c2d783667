"""Adaptive span: the soft mask by hand, exact gradients to the spans, what is visited, and the loss term."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import LongAttentionConfig, attend, build_mechanism, reference_attend
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.adaptive_span import AdaptiveSpan
from hf_longattn.mechanisms.common.locality import keys_per_query
from tests.cells import every_cell

FRACTIONS = (0.0, 0.137, 0.771, 0.5)


def spanned(max_span: int = 100, ramp: int = 10, fractions: tuple[float, ...] = FRACTIONS, **options: Any) -> AdaptiveSpan:
    module = build_mechanism("adaptive_span", num_heads=len(fractions), head_dim=16, max_span=max_span, ramp=ramp, **options)
    assert isinstance(module, AdaptiveSpan)
    module.span_fraction.data.copy_(torch.tensor(fractions))
    return module


def inputs(length: int, q_len: int | None = None, heads: int = 4) -> list[Tensor]:
    return [torch.randn(2, h, n, 16, requires_grad=True) for h, n in ((heads, q_len or length), (2, length), (2, length))]


@pytest.mark.parametrize("causal", [False, True])
def test_the_weights_by_hand(causal: bool) -> None:
    module = spanned(20, 4, (0.25, 0.5))
    q, k = torch.randn(1, 2, 40, 16), torch.randn(1, 2, 40, 16)
    distance = torch.arange(40)[:, None] - torch.arange(40)
    mask = torch.stack([((4 + z - distance.abs()) / 4).clamp(0, 1) for z in (5.0, 10.0)])
    mask = mask * (distance >= 0) if causal else mask
    raw = mask * (q @ k.transpose(-1, -2) / 4).exp()
    torch.testing.assert_close(module.weights(q, k, causal=causal), raw / raw.sum(-1, keepdim=True), atol=1e-6, rtol=0)


@every_cell("causal", [False, True])
@every_cell(("length", "q_len"), [(50, 50), (517, 517), (517, 290)])
@every_cell("moved", [False, True])
def test_output_and_all_gradients_equal_the_definition(length: int, q_len: int, causal: bool, moved: bool) -> None:
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


def test_gradcheck_of_the_spans() -> None:
    module = spanned(30, 8, (0.31, 0.62)).double()
    q, k, v = (torch.randn(1, 2, 40, 4, dtype=torch.float64) for _ in range(3))
    assert torch.autograd.gradcheck(
        lambda fraction: torch.func.functional_call(module, {"span_fraction": fraction}, (q, k, v, AttentionCall())),
        (module.span_fraction.detach().clone().requires_grad_(),),
    )


def test_only_what_the_longest_span_reaches_is_visited() -> None:
    module = spanned(4096, 10, (0.01, 0.005))
    assert module.pattern(True).left == 50  # 40.96 + 10, rounded up, less the query itself
    assert module._part(2048, 2048, True, torch.float32, torch.device("cpu")).keys.shape[-1] == 64 + 64
    with torch.no_grad():
        module.span_fraction.add_(0.01)
    assert module.pattern(True).left == 91, "read again when the parameter has changed"
    assert module.pairs(1000, True) == sum(min(i, 91) + 1 for i in range(1000))
    assert keys_per_query(module) == 4096 + 10


def test_fractions_stay_between_0_and_1() -> None:
    module = spanned(100, 10, (-0.2, 1.3))
    q, k, v = inputs(300, heads=2)
    assert module.spans.tolist() == [0.0, 100.0]
    torch.testing.assert_close(attend(q, k, v, module.eval()), attend(q, k, v, spanned(100, 10, (0.0, 1.0)).eval()), atol=0, rtol=0)
    assert module.span_fraction[1] > 1, "nothing is written in evaluation"
    attend(q, k, v, module.train())
    assert module.span_fraction.tolist() == [0.0, 1.0]


def test_the_loss_term_shortens_spans_that_nothing_needs() -> None:
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


def test_initial_spans() -> None:
    assert build_mechanism("adaptive_span", num_heads=3, head_dim=4, max_span=64).spans.tolist() == [64.0] * 3
    assert build_mechanism("adaptive_span", num_heads=3, head_dim=4, max_span=64, init_span=16).spans.tolist() == [16.0] * 3
    assert build_mechanism("adaptive_span", num_heads=3, head_dim=4, max_span=64, init_span=0).spans.tolist() == [0.0] * 3


@every_cell(
    ("options", "says"),
    [
        ({"max_span": 0}, "at least 1"),
        ({"ramp": 0}, "at least 1"),
        ({"max_span": 64, "init_span": 65}, "between 0 and max_span=64"),
        ({"init_span": -1}, "between 0 and"),
        ({"span_loss_weight": -1.0}, "must be at least 0"),
        ({"span_loss_weight": "nan"}, "must be a finite number"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        LongAttentionConfig("adaptive_span", **options)


@every_cell("how", ["data", "data_copy", "foreach", "swap", "load"])
def test_however_the_spans_grow_the_band_follows(how: str) -> None:
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
        torch.testing.assert_close(attend(q, k, v, module), reference_attend(q, k, v, module).float(), atol=1e-5, rtol=0)
