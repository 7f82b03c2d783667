"""A softmax window beside linear attention: its options, its parts, its learned mixture."""

from __future__ import annotations

import pytest
import torch

from hf_longattn import LongAttentionConfig, attend, build_mechanism, reference_attend
from tests.cases import every_case


def inputs(length: int = 90, grad: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 4, length, 16, requires_grad=grad) for _ in range(3)]


@every_case("causal", [False, True])
@every_case(
    "features",
    [
        "linear",
        "linear:feature_map=relu",
        "taylor:feature_dim=8",
        "taylor:scale=head_dim",
        "hedgehog:feature_dim=24",
        "hedgehog:feature_softmax=joint",
    ],
)
def test_hybrid_equals_the_definition_with_every_feature_map(features: str, causal: bool) -> None:
    q, k, v = inputs()
    for scaling in (None, 0.5):
        arguments = {"causal": causal, "scaling": scaling, "window": 12, "features": features, "mixing": 0.3}
        out, expected = attend(q, k, v, "hybrid", **arguments), reference_attend(q, k, v, "hybrid", **arguments)
        torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_the_mixture_and_features_of_hybrid_equal_the_definition(causal: bool) -> None:
    q, k, v = inputs(150)
    module = build_mechanism("hybrid", num_heads=4, head_dim=16, window=10)
    got = torch.autograd.grad(attend(q, k, v, module, causal=causal).square().sum(), list(module.parameters()))
    wanted = torch.autograd.grad(reference_attend(q, k, v, module, causal=causal).square().sum(), list(module.parameters()))
    assert len(got) == 3
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert a.abs().max() > 1e-4


def test_softmax_estimates_of_hybrid_are_on_the_scale_of_the_window() -> None:
    q, k, v = inputs()
    arguments = {"causal": True, "window": 16, "features": "taylor:feature_dim=16", "mixing": 1.0}
    small = 1e-3 * q  # the polynomial of small products is their exp, so that near and far terms are alike
    torch.testing.assert_close(attend(small, k, v, "hybrid", **arguments), attend(small, k, v, "full", causal=True), atol=1e-6, rtol=0)
    for size in (-10.0, 10.0):  # scores of -400 and 400
        q, k = torch.full_like(q, size), torch.full_like(k, 10.0)
        out, expected = attend(q, k, v, "hybrid", **arguments), reference_attend(q, k, v, "hybrid", **arguments)
        torch.testing.assert_close(out, expected.float(), atol=1e-4, rtol=0)


def test_the_features_of_hybrid_stand_in_a_configuration() -> None:
    config = LongAttentionConfig("hybrid", window=32, features="taylor:feature_dim=8")
    written = config.to_dict()
    assert written["features"] == {"mechanism": "taylor", "feature_dim": 8}
    assert LongAttentionConfig.from_dict(written) == config
