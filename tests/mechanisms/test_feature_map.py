"""What every linear mechanism of the registry keeps beyond the common contract."""

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, list_mechanisms, reference_attend
from hf_longattn.engines.call import AttentionCall
from hf_longattn.mechanisms.common.feature_map import LinearMechanism
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.cases import every_case

LINEAR = [name for name in list_mechanisms(grid=False) if issubclass(mechanism_class(name), LinearMechanism)]
FORMS = [
    *((name, {}) for name in LINEAR),
    ("hedgehog", {"feature_softmax": "joint"}),
    ("hedgehog", {"feature_softmax": "none"}),
    ("hedgehog", {"feature_softmax": "halves", "feature_dim": 20}),
    ("taylor", {"scale": "head_dim"}),
    ("taylor", {"feature_dim": 24}),
]
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
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("name", [name for name in LINEAR if mechanism_class(name).capabilities.trains])
def test_learned_features_begin_the_same_for_one_seed(name: str) -> None:
    for one, other in zip(built(name).parameters(), built(name).parameters(), strict=True):
        assert torch.equal(one, other)


def test_large_keys_do_not_overflow_hedgehog_features() -> None:
    q, k, v = (x.clone() for x in qkv(40))
    k[:, :, 20] *= 200
    for form in ("halves", "joint", "none"):
        module = built("hedgehog", feature_softmax=form)
        torch.testing.assert_close(attend(q, k, v, module), reference_attend(q, k, v, module).float(), atol=1e-5, rtol=0)


@pytest.mark.thorough
@every_case("opposite", [False, True], ids=["independent", "opposite"], pairs=True)
@every_case("std", [4.0, 7.0, 20.0])
@every_case("name", LINEAR)
def test_linear_mechanisms_equal_their_definitions_for_large_queries_and_keys(name: str, std: float, opposite: bool) -> None:
    """Whole, in pieces, step by step and defined are one, and no row knows a later key, whatever the size of the scores."""
    torch.manual_seed(0)
    q, k, v = (size * torch.randn(2, heads, 150, 64, dtype=torch.float64) for heads, size in ((4, std), (2, std), (2, 1.0)))
    if opposite:
        q = -k.repeat_interleave(2, 1)
    mask = torch.ones(2, 150, dtype=torch.bool)
    mask[0, :40] = False
    real = mask[:, None, :, None]
    torch.manual_seed(0)
    module = build_mechanism(name, num_heads=4, head_dim=64, **mechanism_class(name).about.sample).eval()
    assert isinstance(module, LinearMechanism)
    # Products of Hedgehog's features below exp(-87) are zeros in fp32, as its docstring says: a row that has no others is one of zeros.
    within_fp32 = not (name == "hedgehog" and std == 20.0 and opposite)
    for causal in (False, True):
        expected = reference_attend(q, k, v, module, causal=causal, padding_mask=mask) * real
        torch.testing.assert_close(attend(q, k, v, module, causal=causal, padding_mask=mask) * real, expected, atol=1e-10, rtol=0)
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
    torch.manual_seed(0)
    q, k, v = ((20 * torch.randn(1, heads, 100, 16, dtype=torch.float64)).requires_grad_() for heads in (4, 2, 2))
    module = built("performer")
    out, expected = attend(q, k, v, module, causal=causal), reference_attend(q, k, v, module, causal=causal)
    for a, b in zip(torch.autograd.grad(out.sin().sum(), (q, k, v)), torch.autograd.grad(expected.sin().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b)
