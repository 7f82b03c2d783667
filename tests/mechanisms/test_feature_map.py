"""What every linear mechanism of the registry keeps beyond the common contract."""

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, list_mechanisms, reference_attend
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.engines.common.sequences import advanced
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.feature_map import LinearMechanism
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.cells import every_cell

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
of_forms = every_cell(("name", "options"), FORMS, ids=FORM_IDS)


def qkv(length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(3, heads, length, 16, dtype=dtype) for heads in (4, 2, 2)]


def built(name: str, **options: object) -> LinearMechanism:
    torch.manual_seed(0)
    module = build_mechanism(name, num_heads=4, head_dim=16, **{**mechanism_class(name).sample, **options})
    assert isinstance(module, LinearMechanism)
    return module.eval()


@of_forms
def test_steps_equal_the_whole_with_left_padding(name: str, options: dict[str, object]) -> None:
    q, k, v = qkv(230)
    mask = torch.ones(3, 230, dtype=torch.bool)
    mask[0, :90] = False
    mask[1, :3] = False
    mask[2, 100:120] = False
    module = built(name, **options)
    with torch.no_grad():
        whole = attend(q, k, v, module, causal=True, padding_mask=mask)
        state, outs = None, []
        for begin, end in ((0, 64), (64, 65), (65, 90), (90, 200), *((i, i + 1) for i in range(200, 230))):
            piece = slice(begin, end)
            skipped = (mask.int().argmax(1) - begin).clamp(0, end - begin).tolist()
            call = AttentionCall.of(padding_mask=mask[:, piece])
            out, state = advanced(module.advance, q[:, :, piece], k[:, :, piece], v[:, :, piece], state, call, skipped)
            outs.append(out)
    assert state is not None
    real = mask[:, None, :, None]
    assert all(x.shape[0] == 3 for x in state.values()), "batch first, so that beams reorder"
    torch.testing.assert_close(torch.cat(outs, 2) * real, whole * real, atol=1e-5, rtol=0)


@of_forms
@every_cell("causal", [False, True])
def test_many_pieces_equal_one(name: str, options: dict[str, object], causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(200, torch.float64))
    module = built(name, **options)
    found = []
    for size in (1, 1 << 30):
        monkeypatch.setattr("hf_longattn.mechanisms.common.feature_map.FEATURES_PER_PIECE", size)
        out = attend(q, k, v, module, causal=causal)
        found.append((out, *torch.autograd.grad(out.sin().sum(), (q, k, v))))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


@every_cell("causal", [False, True])
@every_cell(("name", "options"), [form for form in FORMS if mechanism_class(form[0]).traits.trains])
def test_learned_features_get_gradients_as_the_definition_says(name: str, options: dict[str, object], causal: bool) -> None:
    q, k, v = qkv(90, torch.float64)
    module = built(name, **options).double()
    torch.manual_seed(3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    parameters = list(module.parameters())
    out, expected = (run(q, k, v, module, causal=causal, scaling=0.4) for run in (attend, reference_attend))
    torch.testing.assert_close(out, expected)
    for a, b in zip(torch.autograd.grad(out.sin().sum(), parameters), torch.autograd.grad(expected.sin().sum(), parameters), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", [name for name in LINEAR if mechanism_class(name).traits.trains])
def test_parameters_begin_the_same_for_one_seed(name: str) -> None:
    for one, other in zip(built(name).parameters(), built(name).parameters(), strict=True):
        assert torch.equal(one, other)


def test_relu_features_and_scaling() -> None:
    q, k, v = qkv(100)
    for feature_map in ("relu", "elu"):
        module = built("linear", feature_map=feature_map)
        torch.testing.assert_close(
            attend(q, k, v, module, scaling=0.3), reference_attend(q, k, v, module, scaling=0.3).float(), atol=1e-5, rtol=0
        )
    assert torch.allclose(attend(q, k, v, "linear", scaling=0.25), attend(q, k, v, "linear"), atol=1e-6), "D^-0.5 is the default"


def features_as_printed(form: str, x: Tensor, weight: Tensor) -> Tensor:
    """φ of vectors ``(N, D)`` with W ``(D, F)``, feature by feature."""
    rows = []
    for token in x:
        ups = torch.stack([(weight[:, f] * token).sum().exp() for f in range(weight.shape[1])])
        downs = torch.stack([(-(weight[:, f] * token).sum()).exp() for f in range(weight.shape[1])])
        rows.append({
            "none": torch.cat((ups, downs)),
            "joint": torch.cat((ups, downs)) / (ups.sum() + downs.sum()),
            "halves": torch.cat((ups / ups.sum(), downs / downs.sum())),
        }[form])  # fmt: skip
    return torch.stack(rows)


@every_cell("causal", [False, True])
@every_cell("form", ["halves", "joint", "none"])
def test_hedgehog_features_are_those_of_the_sources(form: str, causal: bool) -> None:
    q, k, v = (3 * x[:1, :1] for x in qkv(12, torch.float64))
    module = build_mechanism("hedgehog", num_heads=1, head_dim=16, feature_softmax=form).double()
    torch.nn.init.normal_(module.query_map.weight, std=0.3)
    torch.nn.init.normal_(module.key_map.weight, std=0.3)
    phi_q, phi_k = (features_as_printed(form, x[0, 0], m.weight[0]) for x, m in ((q, module.query_map), (k, module.key_map)))
    for i, row in enumerate(attend(q, k, v, module, causal=causal)[0, 0]):
        seen = range(i + 1 if causal else 12)
        total = sum((phi_q[i] @ phi_k[j]) * v[0, 0, j] for j in seen)
        torch.testing.assert_close(row, total / sum(phi_q[i] @ phi_k[j] for j in seen), atol=1e-12, rtol=1e-12)


def test_hedgehog_follows_the_authors_code_unless_told_otherwise() -> None:
    q, _, _ = qkv(20)
    for options, expected in (
        ({}, torch.cat((q.softmax(-1), (-q).softmax(-1)), -1)),
        ({"feature_softmax": "joint"}, torch.cat((q, -q), -1).softmax(-1)),
    ):
        torch.testing.assert_close(built("hedgehog", **options).queries(q, AttentionCall(scale=0.25)), expected)


def test_large_keys_do_not_overflow_exponential_features() -> None:
    q, k, v = (x.clone() for x in qkv(40))
    k[:, :, 20] *= 200
    for form in ("halves", "joint", "none"):
        module = built("hedgehog", feature_softmax=form)
        torch.testing.assert_close(attend(q, k, v, module), reference_attend(q, k, v, module).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_taylor_is_the_kernel_of_based(causal: bool) -> None:
    """Arora et al.: 1, x / d^¼ and x ⊗ x / √(2 d) of projected vectors x of d coordinates."""
    q, k, v = (x[:1, :1] for x in qkv(14, torch.float64))
    module = build_mechanism("taylor", num_heads=1, head_dim=16, feature_dim=6).double()
    torch.nn.init.normal_(module.key_map.weight)

    def features(x: Tensor) -> Tensor:
        return torch.cat([torch.ones(1, dtype=x.dtype), x / 6**0.25, torch.outer(x, x).flatten() / (2 * 6) ** 0.5])

    phi_q, phi_k = ([features(x) for x in (y @ m.weight[0])[0, 0]] for y, m in ((q, module.query_map), (k, module.key_map)))
    weights = torch.stack([torch.stack([a @ b for b in phi_k]) for a in phi_q])
    weights = weights.tril() if causal else weights
    torch.testing.assert_close(attend(q, k, v, module, causal=causal)[0, 0], weights / weights.sum(-1, keepdim=True) @ v[0, 0])


@every_cell("feature_dim", [8, 16, 24])
def test_both_scales_of_taylor_estimate_the_same_scores_at_first(feature_dim: int) -> None:
    q, k, v = qkv(30, torch.float64)
    modules = [built("taylor", feature_dim=feature_dim, scale=scale).double() for scale in ("feature_dim", "head_dim")]
    found = [attend(q, k, v, module, scaling=0.7) for module in modules]
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


def test_taylor_without_projection_is_the_polynomial_of_the_scores() -> None:
    q, k, _ = qkv(20, torch.float64)
    scores = 0.25 * q @ k.repeat_interleave(2, 1).mT
    weights = 1 + scores + scores**2 / 2
    found = built("taylor", feature_dim=16).dense_weights(q, k, AttentionCall.of())
    torch.testing.assert_close(found, weights / weights.sum(-1, keepdim=True))


@every_cell("name", ["hedgehog", "taylor"])
@every_cell("value", [7, 0, -2])
def test_odd_feature_dims_are_refused(name: str, value: int) -> None:
    with pytest.raises(OptionError, match=rf"'feature_dim' of mechanism '{name}' is {value}, but must be even"):
        build_mechanism(name, num_heads=4, head_dim=16, feature_dim=value)


def test_states_are_small_beside_keys_and_values() -> None:
    q, k, v = qkv(4)
    _, state = built("linear").advance(q, k, v, None, AttentionCall.of())
    assert {name: tuple(x.shape) for name, x in state.items()} == {"kv": (3, 2, 16, 16), "z": (3, 2, 16)}


@pytest.mark.thorough
@every_cell("opposite", [False, True], ids=["independent", "opposite"], pairs=True)
@every_cell("std", [4.0, 7.0, 20.0])
@every_cell("name", LINEAR)
def test_large_queries_and_keys_change_nothing(name: str, std: float, opposite: bool) -> None:
    """Whole, in pieces, step by step and defined are one, and no row knows a later key, whatever the size of the scores."""
    torch.manual_seed(0)
    q, k, v = (size * torch.randn(2, heads, 150, 64, dtype=torch.float64) for heads, size in ((4, std), (2, std), (2, 1.0)))
    if opposite:
        q = -k.repeat_interleave(2, 1)
    mask = torch.ones(2, 150, dtype=torch.bool)
    mask[0, :40] = False
    real = mask[:, None, :, None]
    torch.manual_seed(0)
    module = build_mechanism(name, num_heads=4, head_dim=64, **mechanism_class(name).sample).eval()
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
