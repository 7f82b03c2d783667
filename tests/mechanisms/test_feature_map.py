"""What every linear mechanism of the registry keeps beyond the common contract."""

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, list_mechanisms
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.feature_map import At, LinearMechanism
from hf_longattn.mechanisms.registry import mechanism_class

LINEAR = [name for name in list_mechanisms() if issubclass(mechanism_class(name), LinearMechanism)]


def qkv(length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(3, heads, length, 16, dtype=dtype) for heads in (4, 2, 2)]


def built(name: str, **options: object) -> LinearMechanism:
    torch.manual_seed(0)
    module = build_mechanism(name, num_heads=4, head_dim=16, **{**mechanism_class(name).sample, **options})
    assert isinstance(module, LinearMechanism)
    return module.eval()


@pytest.mark.parametrize("name", LINEAR)
def test_steps_equal_the_whole_with_left_padding(name: str) -> None:
    q, k, v = qkv(230)
    mask = torch.ones(3, 230, dtype=torch.bool)
    mask[0, :90] = False
    mask[1, :3] = False
    mask[2, 100:120] = False
    module = built(name)
    with torch.no_grad():
        whole = module(q, k, v, causal=True, padding_mask=mask)
        state, outs = None, []
        for begin, end in ((0, 64), (64, 65), (65, 90), (90, 200), *((i, i + 1) for i in range(200, 230))):
            piece = slice(begin, end)
            out, state = module.advance(q[:, :, piece], k[:, :, piece], v[:, :, piece], state, padding_mask=mask[:, piece])
            outs.append(out)
    assert all(x.shape[0] == 3 for x in state.values()), "batch first, so that beams reorder"
    torch.testing.assert_close(torch.cat(outs, 2), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("causal", [False, True])
def test_many_pieces_equal_one(name: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(400, torch.float64))
    module = built(name)
    found = []
    for size in (1, 1 << 30):
        monkeypatch.setattr("hf_longattn.mechanisms.feature_map.PIECE", size)
        out = module(q, k, v, causal=causal)
        found.append((out, *torch.autograd.grad(out.sin().sum(), (q, k, v))))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("name", [name for name in LINEAR if mechanism_class(name).trains])
def test_learned_features_get_gradients_as_the_definition_says(name: str) -> None:
    q, k, v = qkv(90, torch.float64)
    module = built(name).double()
    torch.manual_seed(3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    parameters = list(module.parameters())
    out, expected = module(q, k, v, causal=True), module.reference(q, k, v, causal=True)
    torch.testing.assert_close(out, expected)
    for a, b in zip(torch.autograd.grad(out.sin().sum(), parameters), torch.autograd.grad(expected.sin().sum(), parameters), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", [name for name in LINEAR if mechanism_class(name).trains])
def test_parameters_begin_the_same_for_one_seed(name: str) -> None:
    for one, other in zip(built(name).parameters(), built(name).parameters(), strict=True):
        assert torch.equal(one, other)


def test_relu_features_and_scaling() -> None:
    q, k, v = qkv(100)
    for feature_map in ("relu", "elu"):
        module = built("linear", feature_map=feature_map)
        torch.testing.assert_close(module(q, k, v, scaling=0.3), module.reference(q, k, v, scaling=0.3).float(), atol=1e-5, rtol=0)
    assert torch.allclose(attend(q, k, v, "linear", scaling=0.25), attend(q, k, v, "linear"), atol=1e-6), "D^-0.5 is the default"


def test_hedgehog_begins_as_the_softmax_of_the_head_and_its_negative() -> None:
    q, _, _ = qkv(20)
    features = built("hedgehog").queries(q, At(0.25))
    torch.testing.assert_close(features, torch.cat((q, -q), -1).softmax(-1))


def test_taylor_without_projection_is_the_polynomial_of_the_scores() -> None:
    q, k, _ = qkv(20, torch.float64)
    scores = 0.25 * q @ k.repeat_interleave(2, 1).mT
    weights = 1 + scores + scores**2 / 2
    found = built("taylor", feature_dim=16).dense_weights(q, k)
    torch.testing.assert_close(found, weights / weights.sum(-1, keepdim=True))


@pytest.mark.parametrize("name", ["hedgehog", "taylor"])
@pytest.mark.parametrize("value", [7, 0, -2])
def test_odd_feature_dims_are_refused(name: str, value: int) -> None:
    with pytest.raises(OptionError, match=rf"'feature_dim' of mechanism '{name}' is {value}, but must be even"):
        build_mechanism(name, num_heads=4, head_dim=16, feature_dim=value)


def test_states_are_small_beside_keys_and_values() -> None:
    q, k, v = qkv(4)
    _, state = built("linear").advance(q, k, v, None)
    assert {name: tuple(x.shape) for name, x in state.items()} == {"kv": (3, 2, 16, 16), "z": (3, 2, 16)}
