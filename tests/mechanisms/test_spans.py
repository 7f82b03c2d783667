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


def inputs(length: int, heads: int = 4) -> list[Tensor]:
    return [torch.randn(2, count, length, 16, requires_grad=True) for count in (heads, 2, 2)]


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


def test_pairs_of_hierarchical_grow_as_n_log_n() -> None:
    module = build_mechanism("hierarchical", num_heads=1, head_dim=8, block_size=64)
    per_token = [module.pairs(n) / n for n in (4096, 8192, 16384, 32768)]
    steps = [b - a for a, b in itertools.pairwise(per_token)]
    assert all(90 < step < 100 for step in steps), "one and a half blocks more for each doubling"
