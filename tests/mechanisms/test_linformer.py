"""linformer: every projection and sharing against its definition, any padding and length, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.errors import LengthError
from hf_longattn.mechanisms.common.traits import FitsActivations
from hf_longattn.mechanisms.linformer import (
    SHARINGS,
    Measured,
    fitted_projections,
    fitted_values,
    output_error,
    segment_matrix,
)
from tests.cases import every_case
from tests.mechanisms.definition import assert_equals_its_definition

LENGTH = 130
FORMS = [
    *({"rank": 16, "max_length": 200, "sharing": sharing} for sharing in SHARINGS),
    *({"rank": 16, "max_length": 200, "projection": "convolution", "sharing": sharing} for sharing in SHARINGS),
    {"rank": 16, "projection": "pooling"},
    {"rank": 64, "projection": "pooling"},
]


def built(options: dict[str, Any], length: int | None = None) -> Any:
    """A mechanism of four heads whose parameters are all different."""
    from hf_longattn.mechanisms.common.registry import mechanism_from

    torch.manual_seed(0)
    module = mechanism_from("linformer", options, num_heads=4, head_dim=8, max_length=length)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module


def padding(side: str) -> Tensor | None:
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    if side == "none":
        return None
    mask[0, : 40 if side == "left" else 0] = False
    mask[0, LENGTH - (40 if side == "right" else 0) :] = False
    mask[1, 30 : 50 if side == "inside" else 30] = False
    mask[2, 5:] = False  # fewer tokens than rows
    return mask


@every_case("side", ["none", "left", "right", "inside"])
@every_case("options", FORMS, ids=str)
def test_linformer_equals_its_definition_for_every_projection_and_sharing(options: dict[str, Any], side: str) -> None:
    module, mask = built(options), padding(side)
    q = torch.randn(3, 4, LENGTH, 8, requires_grad=True)
    k, v = (torch.randn(3, 2, LENGTH, 8, requires_grad=True) for _ in range(2))
    assert_equals_its_definition(module, q, k, v, mask)


def test_linformer_pooling_and_convolution_take_any_length() -> None:
    q, k, v = torch.randn(3, 1, 4, 333, 8)
    for options in ({"rank": 7, "projection": "pooling"}, {"rank": 7, "projection": "convolution", "max_length": 40}):
        module = built(options)
        torch.testing.assert_close(attend(q, k, v, module), reference_attend(q, k, v, module).float(), atol=1e-5, rtol=0)


def test_linformer_refuses_a_text_longer_than_its_projection() -> None:
    with pytest.raises(LengthError, match=r"65 tokens.*rows for 64; shorten it, or .*max_length=65 or projection='pooling'\.$"):
        attend(*torch.randn(3, 1, 4, 65, 8), "linformer", rank=8, max_length=64)


MEASURED_LENGTH = 48


@pytest.fixture
def measured() -> Measured:
    """Layers of 2 heads on 6 sequences, whose keys repeat those of a few places."""
    torch.manual_seed(0)
    source = torch.randn(6, 2, 8, 16)
    which = torch.arange(MEASURED_LENGTH) % 8
    return Measured(2 * torch.randn(6, 2, MEASURED_LENGTH, 16), 2 * source[:, :, which], source.roll(1, 0)[:, :, which])


def pooled(rank: int) -> Tensor:
    return segment_matrix(torch.ones(1, MEASURED_LENGTH, dtype=torch.bool), rank, torch.float32)[0].T


def test_fitted_linformer_projections_are_never_worse_than_pooling() -> None:
    torch.manual_seed(1)
    measured = Measured(*torch.randn(3, 8, 2, MEASURED_LENGTH, 16))
    aside = measured.only(torch.arange(8) >= 6)
    for rank in (3, 16, MEASURED_LENGTH, 60):
        e, f = fitted_projections(measured, rank, apart=True)
        assert e.shape == f.shape == (MEASURED_LENGTH, rank)
        assert output_error(e, f, aside) <= output_error(pooled(rank), pooled(rank), aside) + 1e-6


def test_fitted_linformer_values_are_the_least_squares_solution(measured: Measured) -> None:
    e = pooled(8)
    f = fitted_values(e, measured.q, measured.k, measured.scale)
    weights, few = (
        torch.softmax(measured.q @ keys.transpose(-1, -2) * measured.scale, -1).double()
        for keys in (measured.k, e.T @ measured.k)
    )  # fmt: skip

    def distance(values: Tensor) -> float:
        return float((weights - few @ values.double().T).square().sum())

    expected = torch.linalg.lstsq(few.flatten(0, 2), weights.flatten(0, 2)).solution.T
    assert distance(f) <= 1.01 * distance(expected)
    assert distance(f) < 0.9 * distance(e)


@every_case("sharing", ["none", "headwise", "key-value", "layerwise"])
def test_linformer_fitted_to_activations_begins_near_full_attention(measured: Measured, sharing: str) -> None:
    module = build_mechanism("linformer", num_heads=2, head_dim=16, rank=8, max_length=MEASURED_LENGTH, sharing=sharing)
    full = torch.nn.functional.scaled_dot_product_attention(*measured)
    before = (attend(*measured, mechanism=module) - full).norm() / full.norm()
    assert module.init_from_activations(*measured)
    assert (attend(*measured, mechanism=module) - full).norm() / full.norm() < 0.01 < before


def test_linformer_fitted_to_shorter_texts_projects_longer_ones_in_pieces(measured: Measured) -> None:
    module = build_mechanism("linformer", num_heads=2, head_dim=16, rank=16, max_length=2 * MEASURED_LENGTH, sharing="key-value")
    module.init_from_activations(*measured)
    first, second = module.key_projection[0, :MEASURED_LENGTH], module.key_projection[0, MEASURED_LENGTH:]
    assert torch.equal(first[:, :8], second[:, 8:])
    assert not first[:, 8:].any()
    assert not second[:, :8].any()


@every_case("name", ["linformer", "nystrom", "window"])
def test_mechanisms_without_projections_are_not_fitted_to_activations(measured: Measured, name: str) -> None:
    options = {"projection": "pooling"} if name == "linformer" else {}
    built = build_mechanism(name, num_heads=2, head_dim=16, max_length=MEASURED_LENGTH, **options)
    assert not built.traits.fits_activations
    assert not isinstance(built, FitsActivations) or not built.init_from_activations(*measured)
