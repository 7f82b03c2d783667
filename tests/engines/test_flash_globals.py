"""A band with global tokens by three calls of the flash-attention operator, whose definition runs in its place."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.batch import Batch, for_one_pass
from hf_longattn.engines.call import AttentionCall, Pattern
from hf_longattn.engines.cuda import flash_band
from hf_longattn.engines.cuda.flash_band import Plan
from hf_longattn.engines.dispatch import observe
from tests.cases import every_case

from .test_one_call import MECHANISMS, PADDING, calls, real_tokens

WIDTH = 8
"""Heads that flex_attention refuses."""
CELLS = [
    *itertools.product(["longformer"], PADDING, [False, True], ["positions", "scattered", "question"], [False, True]),
    *itertools.product([*MECHANISMS][1:], PADDING, [False, True], ["positions"], [False, True]),
]


@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
@every_case(("name", "padding", "causal", "tokens", "packed"), CELLS, of=10)
def test_three_flash_calls_equal_the_definition_with_its_gradients(
    name: str, padding: str, causal: bool, tokens: str, packed: bool
) -> None:
    module, tensors, arguments = calls(name, padding, causal, tokens, packed, heads=2, width=WIDTH)
    paths: list[str] = []
    with observe(lambda _, choice: paths.append(choice.path)):
        out = attend(*tensors, module, **arguments)
    in_front = tokens == "positions" and name != "five positions"
    if (in_front or not causal) and padding != "holes":
        assert paths[-1] == "flash"
    expected, real = reference_attend(*tensors, module, **arguments), real_tokens(padding)
    rows = torch.ones_like(out) if real is None else real[:, None, :, None].double().expand_as(out)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype) * rows
    torch.testing.assert_close(out * rows, expected * rows, atol=1e-12, rtol=0)
    for grad, exact in zip(torch.autograd.grad(out, tensors, weights), torch.autograd.grad(expected, tensors, weights), strict=True):
        torch.testing.assert_close(grad, exact, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
@every_case(("positions", "causal"), itertools.product([(0, 0), (1, 0), (300, 7, 7, 0)], [False, True]))
def test_global_positions_count_once_in_any_order(positions: tuple[int, ...], causal: bool) -> None:
    _, tensors, _ = calls("longformer", "none", causal, "positions", False, heads=2, width=WIDTH)
    options: dict[str, Any] = {"window": 60, "global_tokens": positions, "causal": causal}
    paths: list[str] = []
    with observe(lambda _, choice: paths.append(choice.path)):
        out = attend(*tensors, "longformer", **options)
    assert paths == ["plain" if causal and max(positions) > 1 else "flash"]
    torch.testing.assert_close(out, reference_attend(*tensors, "longformer", **options), atol=1e-12, rtol=0)


@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
@pytest.mark.parametrize("own_tokens", [False, True])
def test_layers_of_a_union_share_one_plan(own_tokens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tensors, _ = calls("longformer", "none", False, "positions", False, heads=4, width=WIDTH)
    members = "longformer:window=40,global_tokens=0+3+longformer:window=60,global_tokens=0+5"
    module = build_mechanism("union", num_heads=4, head_dim=WIDTH, of=members).eval()
    made: list[Plan | str] = []
    make = flash_band._plan

    def counted(*arguments: Any) -> Plan | str:
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(flash_band, "_plan", counted)
    tokens = for_one_pass((torch.arange(700) % 90 == 7).expand(2, -1)) if own_tokens else None
    call = AttentionCall(batch=Batch.of(real_tokens("left")), global_mask=tokens)
    first, second = (module(*tensors, call) for _ in range(2))
    assert torch.equal(first, second)
    assert len(made) == 1


LENGTH = 14
FORMS: dict[str, dict[str, Any]] = {
    "in front": {"global_positions": (0, 1)},
    "in front, causal": {"global_positions": (0, 1), "causal": True},
    "elsewhere": {"global_mask": torch.arange(LENGTH) % 5 == 3},
    "elsewhere, columns alone": {"global_mask": torch.arange(LENGTH) % 5 == 3, "rows": False},
}


def run(form: str, padded: bool, dropout: float, *tensors: Tensor) -> Tensor:
    """The output without padding; the same weights are dropped in every call."""
    torch.manual_seed(0)
    settings, batch = dict(FORMS[form]), Batch.of(torch.arange(LENGTH) >= torch.tensor([[0], [3]])) if padded else None
    causal = settings.get("causal", False)
    positions, tokens = settings.get("global_positions"), settings.get("global_mask")
    tokens = (torch.arange(LENGTH) < 2 if tokens is None else tokens).expand(2, -1)
    tokens = tokens if batch is None else tokens.roll(3, 1) & batch.mask
    call = AttentionCall(causal, batch, tokens, positions, dropout=dropout)
    pattern = Pattern(2, 0 if causal else 2, causal, has_globals=True, global_rows=settings.get("rows", True))
    out = flash_band.flash_globals(*tensors, pattern, call)
    return out[:, :, 3:] if padded else out


@pytest.mark.usefixtures("emulated_flash")
@every_case(("form", "padded", "dropout"), list(itertools.product(FORMS, [False, True], [0.0, 0.4])))
def test_three_flash_calls_pass_gradcheck_with_dropout(form: str, padded: bool, dropout: float) -> None:
    torch.manual_seed(1)
    tensors = [torch.randn(2, heads, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    assert torch.autograd.gradcheck(lambda *x: run(form, padded, dropout, *x), tensors, fast_mode=True)


@pytest.mark.usefixtures("emulated_flash")
@every_case("form", list(FORMS))
def test_dropout_of_three_flash_calls_removes_weights_and_scales_the_others(form: str) -> None:
    """With unit vectors as values, the output of a query is its weights."""
    q, k = (torch.randn(2, 4, LENGTH, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    v = torch.eye(LENGTH, 16, dtype=torch.float64).expand(2, 4, -1, -1)
    whole, dropped = run(form, False, 0.0, q, k, v), run(form, False, 0.25, q, k, v)
    seen = whole > 1e-12
    assert ((dropped == 0) | torch.isclose(dropped, whole / 0.75)).all()
    assert (dropped[seen] == 0).double().mean() == pytest.approx(0.25, abs=0.05)


def test_lowered_scores_have_no_weight_in_half_precision() -> None:
    for dtype, scale in itertools.product((torch.bfloat16, torch.float16), (1e-4, 0.0625, 1.0)):
        q, k, v = (torch.zeros(3, 2, 64, dtype=dtype) for _ in range(3))
        marks = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1).expand(-1, -1, flash_band.FEATURES)
        queries, keys, values = flash_band._lowered(q, k, v, marks, scale)
        scores = torch.einsum("qhd,khd->hqk", queries.float(), keys.float()) * scale
        assert values.shape[-1] == 72
        assert (scores[..., [0, 2]] == 0).all()
        assert (scores[..., 1].exp() == 0).all()
