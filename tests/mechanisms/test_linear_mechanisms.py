"""Linear mechanisms: pieces, large queries and keys, random features, and the hybrid with a softmax window."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_longattn import LongAttentionConfig, attend, build_mechanism, list_mechanisms, reference_attend
from hf_longattn.engines.call import AttentionCall
from hf_longattn.mechanisms.common.feature_map import LinearMechanism
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.mechanisms.performer import Performer, orthogonal_gaussian
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients

LINEAR = [name for name in list_mechanisms(grid=False) if issubclass(mechanism_class(name), LinearMechanism)]
FORMS = [*((name, {}) for name in LINEAR), ("hedgehog", {"feature_dim": 20}), ("taylor", {"feature_dim": 24})]
FORM_IDS = ["-".join([name, *map(str, options.values())]) for name, options in FORMS]
of_forms = every_case(("name", "options"), FORMS, ids=FORM_IDS)


def qkv(length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(3, heads, length, 16, dtype=dtype) for heads in (4, 2, 2)]


def built(name: str, **options: object) -> LinearMechanism:
    torch.manual_seed(0)
    module = build_mechanism(name, num_heads=4, head_dim=16, **{**mechanism_class(name).about.sample, **options})
    assert isinstance(module, LinearMechanism)
    return module.eval()


@of_forms
@every_case("causal", [False, True])
def test_linear_attention_in_many_pieces_of_features_equals_one(
    name: str, options: dict[str, object], causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(200, torch.float64))
    module = built(name, **options)
    found = []
    for size in (1, 1 << 30):
        monkeypatch.setattr("hf_longattn.mechanisms.common.feature_map.FEATURES_PER_PIECE", size)
        out = attend(q, k, v, module, causal=causal)
        found.append((out, *torch.autograd.grad(out.sin().sum(), (q, k, v))))
    torch.testing.assert_close(*found, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("name", [name for name in LINEAR if mechanism_class(name).capabilities.trains])
def test_learned_features_begin_the_same_for_one_seed(name: str) -> None:
    for one, other in zip(built(name).parameters(), built(name).parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.thorough
@every_case("opposite", [False, True], ids=["independent", "opposite"], pairs=True)
@every_case("std", [4.0, 7.0, 20.0])
@every_case("name", LINEAR)
def test_linear_mechanisms_equal_their_definitions_for_large_queries_and_keys(
    name: str, std: float, opposite: bool
) -> None:
    """Whole, in pieces, step by step and defined are one, and no row knows a later key, whatever the size of the
    scores."""
    q, k, v = (
        size * torch.randn(2, heads, 150, 64, dtype=torch.float64) for heads, size in ((4, std), (2, std), (2, 1.0))
    )
    if opposite:
        q = -k.repeat_interleave(2, 1)
    mask = torch.ones(2, 150, dtype=torch.bool)
    mask[0, :40] = False
    real = mask[:, None, :, None]
    torch.manual_seed(0)
    module = build_mechanism(name, num_heads=4, head_dim=64, **mechanism_class(name).about.sample).eval()
    assert isinstance(module, LinearMechanism)
    # Products of Hedgehog's features below exp(-87) are zeros in fp32, as its docstring says: a row that has no others
    # is one of zeros.
    within_fp32 = not (name == "hedgehog" and std == 20.0 and opposite)
    for causal in (False, True):
        expected = reference_attend(q, k, v, module, causal=causal, padding_mask=mask) * real
        torch.testing.assert_close(
            attend(q, k, v, module, causal=causal, padding_mask=mask) * real, expected, atol=1e-10, rtol=0
        )
        found = attend(q.float(), k.float(), v.float(), module, causal=causal, padding_mask=mask)
        assert found.isfinite().all()
        if within_fp32:
            torch.testing.assert_close((found * real).double(), expected, atol=2e-3, rtol=0)
    bounds = {torch.float64: 1e-10, torch.float32: 2e-3} if within_fp32 else {torch.float64: 1e-10}
    for dtype, bound in bounds.items():
        state, outs = None, []
        for begin, end in ((0, 60), *((i, i + 1) for i in range(60, 90)), (90, 150)):
            piece = slice(begin, end)
            one = (x[:, :, piece].to(dtype) for x in (q, k, v))
            out, state = module.advance(*one, state, AttentionCall.of(padding_mask=mask[:, piece]))
            outs.append(out)
        torch.testing.assert_close((torch.cat(outs, 2) * real).double(), expected, atol=bound, rtol=0)
    k[:, :, 100:] *= 0.1
    v[:, :, 100:] += 3.0
    for dtype, bound in bounds.items():
        after = attend(q.to(dtype), k.to(dtype), v.to(dtype), module, causal=True, padding_mask=mask) * real
        torch.testing.assert_close(after.double()[:, :, :100], expected[:, :, :100], atol=bound, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_exponential_features_of_large_keys_have_the_gradients_of_the_definition(causal: bool) -> None:
    q, k, v = ((20 * torch.randn(1, heads, 100, 16, dtype=torch.float64)).requires_grad_() for heads in (4, 2, 2))
    module = built("performer")
    out, expected = attend(q, k, v, module, causal=causal), reference_attend(q, k, v, module, causal=causal)
    assert_equal_with_gradients(out, expected, (q, k, v), atol=1e-7, gradients=1e-7, rtol=1e-7)


def performer_built(**options: object) -> Performer:
    module = build_mechanism("performer", num_heads=2, head_dim=16, **{"num_features": 40, **options})
    assert isinstance(module, Performer)
    return module


def performer_qkv(length: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [scale * torch.randn(1, 2, length, 16, generator=generator) for _ in range(3)]


def test_performer_directions_are_orthogonal_in_blocks_with_gaussian_lengths() -> None:
    drawn = orthogonal_gaussian(4000, 16, 0).double()
    block = torch.nn.functional.normalize(drawn[:16], dim=-1)
    torch.testing.assert_close(block @ block.mT, torch.eye(16, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(drawn.mT @ drawn / 4000, torch.eye(16, dtype=torch.float64), atol=0.1, rtol=0)
    assert drawn.square().sum(-1).var() == pytest.approx(32, rel=0.15), "chi-squared with 16 degrees of freedom"


def test_seed_layer_and_draw_each_change_the_directions_of_performer() -> None:
    base = performer_built()
    assert torch.equal(base.projection, performer_built().projection)
    other_layer = performer_built()
    other_layer.layer = 1
    redrawn = performer_built()
    redrawn.redraw()
    for other in (performer_built(seed=1), other_layer, redrawn):
        assert not torch.equal(base.projection, other.projection)
    q, k, v = performer_qkv(30)
    assert not torch.equal(attend(q, k, v, "performer", seed=1), attend(q, k, v, "performer", seed=2))


def test_the_state_dict_carries_the_directions_of_performer() -> None:
    old, new = performer_built(seed=3), performer_built()
    new.load_state_dict(old.state_dict())
    q, k, v = performer_qkv(50)
    assert torch.equal(attend(q, k, v, old), attend(q, k, v, new))


def test_performer_draws_directions_anew_in_training_only_by_the_seed() -> None:
    module, twin = performer_built(redraw_interval=2).train(), performer_built(redraw_interval=2).train()
    q, k, v = performer_qkv(20)
    draws = []
    for _ in range(6):
        attend(q, k, v, module)
        draws.append(module.projection)
    assert [torch.equal(a, b) for a, b in pairwise(draws)] == [False, True, False, True, False]
    for _ in range(4):
        attend(q, k, v, twin)
    resumed = performer_built(redraw_interval=2).train()
    resumed.load_state_dict(copy.deepcopy(twin.state_dict()))
    for _ in range(2):
        attend(q, k, v, resumed)
    assert torch.equal(resumed.projection, module.projection), "training that goes on draws what it would have drawn"
    module.eval()
    before = module.projection
    for _ in range(4):
        attend(q, k, v, module)
    assert module.projection is before


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_performer_does_not_count_its_second_run(reentrant: bool) -> None:
    module = performer_built(redraw_interval=2).train()
    for step in range(1, 5):
        q, k, v = (x.requires_grad_() for x in performer_qkv(20))
        checkpoint(attend, q, k, v, module, use_reentrant=reentrant).sum().backward()
        assert int(module.passes) == step


def test_the_error_of_performer_falls_with_the_root_of_the_number_of_features() -> None:
    q, k, v = performer_qkv(128, 0.35)
    expected = attend(q, k, v, "full")
    errors = []
    for features in (16, 64, 256, 1024):
        runs = [
            attend(q, k, v, "performer", num_features=features, seed=seed, redraw_interval=0) for seed in range(1, 9)
        ]
        errors.append(torch.stack([(out - expected).square().mean() for out in runs]).mean().sqrt().item())
    for few, many in pairwise(errors):
        assert 0.35 < many / few < 0.65, "four times the features halve the error"


def test_softmax_estimates_of_hybrid_are_on_the_scale_of_the_window() -> None:
    q, k, v = torch.randn(3, 2, 4, 90, 16)
    mechanism = build_mechanism("hybrid", num_heads=4, head_dim=16, window=16, features="taylor:feature_dim=16")
    torch.nn.init.constant_(mechanism.mixing, 40.0)  # γ = 1
    small = 1e-3 * q  # the polynomial of small products is their exp, so that near and far terms are alike
    torch.testing.assert_close(
        attend(small, k, v, mechanism, causal=True), attend(small, k, v, "full", causal=True), atol=1e-6, rtol=0
    )
    for size in (-10.0, 10.0):  # scores of -400 and 400
        q, k = torch.full_like(q, size), torch.full_like(k, 10.0)
        out, expected = (run(q, k, v, mechanism, causal=True) for run in (attend, reference_attend))
        torch.testing.assert_close(out, expected.float(), atol=1e-4, rtol=0)


def test_the_features_of_hybrid_stand_in_a_configuration() -> None:
    config = LongAttentionConfig("hybrid", window=32, features="taylor:feature_dim=8")
    written = config.to_dict()
    assert written["features"] == {"mechanism": "taylor", "feature_dim": 8}
    assert LongAttentionConfig.from_dict(written) == config


def test_the_state_of_a_bf16_text_in_a_graph_is_that_outside_of_one() -> None:
    """Not rounded to bf16."""
    mechanism = build_mechanism("performer", num_heads=2, head_dim=8, num_features=16).eval()
    generator = torch.Generator().manual_seed(0)
    q, k, v = (3 * torch.randn(1, 2, 24, 8, generator=generator).bfloat16() for _ in range(3))

    def run(*qkv: Tensor) -> dict[str, Tensor]:
        return mechanism.run(*qkv, None, AttentionCall(causal=True))[1]

    expected, state = run(q, k, v), torch.compile(run, backend="eager")(q, k, v)
    torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-4)
