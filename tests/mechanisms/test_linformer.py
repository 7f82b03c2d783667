"""linformer: every projection and sharing against its definition, any padding and length, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.errors import LengthError, OptionError
from hf_longattn.mechanisms.common.traits import FitsActivations
from hf_longattn.mechanisms.linformer import (
    SHARINGS,
    Measured,
    fitted_projections,
    fitted_values,
    output_error,
    segment_matrix,
    spanning_places,
)
from tests.cells import every_cell
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


@every_cell("side", ["none", "left", "right", "inside"])
@every_cell("options", FORMS, ids=str)
def test_every_form_equals_its_definition(options: dict[str, Any], side: str) -> None:
    module, mask = built(options), padding(side)
    q = torch.randn(3, 4, LENGTH, 8, requires_grad=True)
    k, v = (torch.randn(3, 2, LENGTH, 8, requires_grad=True) for _ in range(2))
    assert_equals_its_definition(module, q, k, v, mask)


def test_equation_7_written_out() -> None:
    module = built({"rank": 5, "max_length": 40})
    q, k, v = torch.randn(3, 1, 4, 30, 8)
    e, f = module.key_projection[0, :30], module.value_projection[0, :30]
    keys, values = (torch.einsum("nr,bhnd->bhrd", p, x) for p, x in ((e, k), (f, v)))
    expected = torch.softmax(q @ keys.transpose(-1, -2) / 8**0.5, -1) @ values
    torch.testing.assert_close(attend(q, k, v, module), expected, atol=1e-5, rtol=0)


@every_cell("options", FORMS, ids=str)
def test_how_many_parameters_a_layer_has(options: dict[str, Any]) -> None:
    own = 4 if options.get("sharing") == "none" else 1
    pair = 1 if options.get("sharing") in ("key-value", "layerwise") else 2
    size = {"linear": 16 * 200, "convolution": 13, "pooling": 0}[options.get("projection", "linear")]
    assert sum(p.numel() for p in built(options).parameters()) == own * pair * size


def test_pooling_and_convolution_take_any_length() -> None:
    q, k, v = torch.randn(3, 1, 4, 333, 8)
    for options in ({"rank": 7, "projection": "pooling"}, {"rank": 7, "projection": "convolution", "max_length": 40}):
        module = built(options)
        torch.testing.assert_close(attend(q, k, v, module), reference_attend(q, k, v, module).float(), atol=1e-5, rtol=0)


def test_pooling_equal_runs_is_the_mean() -> None:
    q, k, v = torch.randn(3, 1, 4, 60, 8)
    out = attend(q, k, v, "linformer", projection="pooling", rank=12)
    rows = [x.unflatten(2, (12, 5)).mean(3) for x in (k, v)]
    torch.testing.assert_close(out, torch.softmax(q @ rows[0].transpose(-1, -2) / 8**0.5, -1) @ rows[1])


def test_a_text_longer_than_its_projection_is_refused() -> None:
    with pytest.raises(LengthError, match=r"65 tokens.*rows for 64; shorten it, or .*max_length=65 or projection='pooling'\.$"):
        attend(*torch.randn(3, 1, 4, 65, 8), "linformer", rank=8, max_length=64)


@every_cell(
    ("options", "sentence"),
    [
        ({"rank": 0}, "'rank'.*is 0, but must be at least 1"),
        ({"rank": 65, "max_length": 64}, "'rank'.*is 65, but must be at most the longest text, 64 tokens; for example rank=16"),
        ({"rank": 8, "projection": "convolve"}, "Did you mean 'convolution'"),
        ({"rank": 8, "sharing": "head"}, "must be one of: none, headwise, key-value, layerwise.*Did you mean 'headwise'"),
        ({"rank": 8}, "neither the model nor the option max_length says how many"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        built(options)


def test_the_models_length_limits_the_rank() -> None:
    with pytest.raises(OptionError, match="at most the longest text, 100 tokens"):
        build_mechanism("linformer", num_heads=4, head_dim=8, max_length=100, rank=128)


def test_there_is_no_causal_form() -> None:
    with pytest.raises(OptionError, match="exists only with causal=False"):
        attend(*torch.randn(3, 1, 4, 20, 8), "linformer", causal=True, rank=4)


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
    measured = Measured(*torch.randn(3, 8, 2, MEASURED_LENGTH, 16))
    aside = measured.only(torch.arange(8) >= 6)
    for rank in (3, 16, MEASURED_LENGTH, 60):
        e, f = fitted_projections(measured, rank, apart=True)
        assert e.shape == f.shape == (MEASURED_LENGTH, rank)
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


@every_cell("sharing", ["none", "headwise", "key-value", "layerwise"])
def test_a_mechanism_begins_near_full_attention(measured: Measured, sharing: str) -> None:
    module = build_mechanism("linformer", num_heads=2, head_dim=16, rank=8, max_length=MEASURED_LENGTH, sharing=sharing)
    full = torch.nn.functional.scaled_dot_product_attention(*measured)
    before = (attend(*measured, mechanism=module) - full).norm() / full.norm()
    assert module.init_from_activations(*measured)
    assert (attend(*measured, mechanism=module) - full).norm() / full.norm() < 0.01 < before


def test_longer_texts_are_projected_in_pieces(measured: Measured) -> None:
    module = build_mechanism("linformer", num_heads=2, head_dim=16, rank=16, max_length=2 * MEASURED_LENGTH, sharing="key-value")
    module.init_from_activations(*measured)
    first, second = module.key_projection[0, :MEASURED_LENGTH], module.key_projection[0, MEASURED_LENGTH:]
    assert torch.equal(first[:, :8], second[:, 8:])
    assert not first[:, 8:].any()
    assert not second[:, :8].any()


@every_cell("name", ["linformer", "nystrom", "window"])
def test_others_have_nothing_to_begin(measured: Measured, name: str) -> None:
    options = {"projection": "pooling"} if name == "linformer" else {}
    built = build_mechanism(name, num_heads=2, head_dim=16, max_length=MEASURED_LENGTH, **options)
    assert not built.traits.fits_activations
    assert not isinstance(built, FitsActivations) or not built.init_from_activations(*measured)
