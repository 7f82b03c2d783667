"""A linear Linformer projection begun from measured queries, keys and values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longattn import build_mechanism
from hf_longattn.mechanisms.linformer_start import Measured, fitted_projections, fitted_values, output_error, spanning_places
from hf_longattn.mechanisms.segments import segment_matrix

LENGTH = 48


@pytest.fixture
def measured() -> Measured:
    """Layers of 2 heads on 6 sequences, whose keys repeat those of a few places."""
    torch.manual_seed(0)
    source = torch.randn(6, 2, 8, 16)
    which = torch.arange(LENGTH) % 8
    return Measured(2 * torch.randn(6, 2, LENGTH, 16), 2 * source[:, :, which], source.roll(1, 0)[:, :, which])


def pooled(rank: int) -> Tensor:
    return segment_matrix(torch.ones(1, LENGTH, dtype=torch.bool), rank, torch.float32)[0].T


def test_the_chosen_places_span_what_was_measured(measured: Measured) -> None:
    places = spanning_places(measured.k, 8)
    assert sorted(int(place) % 8 for place in places) == list(range(8)), "one of each repeated key"


@pytest.mark.parametrize("apart", [False, True])
def test_few_rows_give_the_same_attention_where_few_suffice(measured: Measured, apart: bool) -> None:
    e, f = fitted_projections(measured, 8, apart=apart)
    assert output_error(e, f, measured) < 1e-5
    assert output_error(pooled(8), pooled(8), measured) > 0.5
    assert torch.equal(e, f) or apart


def test_it_is_never_worse_than_pooling_on_what_was_kept_aside() -> None:
    torch.manual_seed(1)
    measured = Measured(*torch.randn(3, 8, 2, LENGTH, 16))
    aside = measured.only(torch.arange(8) >= 6)
    for rank in (3, 16, LENGTH, 60):
        e, f = fitted_projections(measured, rank, apart=True)
        assert e.shape == f.shape == (LENGTH, rank)
        assert output_error(e, f, aside) <= output_error(pooled(rank), pooled(rank), aside) + 1e-6


def test_fitted_values_are_the_least_squares_solution(measured: Measured) -> None:
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


@pytest.mark.parametrize("sharing", ["none", "headwise", "key-value", "layerwise"])
def test_a_mechanism_begins_near_full_attention(measured: Measured, sharing: str) -> None:
    module = build_mechanism("linformer", num_heads=2, head_dim=16, rank=8, max_length=LENGTH, sharing=sharing)
    full = torch.nn.functional.scaled_dot_product_attention(*measured)
    before = (module(*measured) - full).norm() / full.norm()
    assert module.init_from_activations(*measured)
    assert (module(*measured) - full).norm() / full.norm() < 0.01 < before


def test_longer_texts_are_projected_in_pieces(measured: Measured) -> None:
    module = build_mechanism("linformer", num_heads=2, head_dim=16, rank=16, max_length=2 * LENGTH, sharing="key-value")
    module.init_from_activations(*measured)
    first, second = module.key_projection[0, :LENGTH], module.key_projection[0, LENGTH:]
    assert torch.equal(first[:, :8], second[:, 8:])
    assert not first[:, 8:].any()
    assert not second[:, :8].any()


@pytest.mark.parametrize("name", ["linformer", "nystrom", "window"])
def test_others_have_nothing_to_begin(measured: Measured, name: str) -> None:
    options = {"projection": "pooling"} if name == "linformer" else {}
    assert not build_mechanism(name, num_heads=2, head_dim=16, max_length=LENGTH, **options).init_from_activations(*measured)
