"""nystrom: options against the definition, the pseudo-inverse, segments, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.errors import LengthError, OptionError
from hf_longattn.mechanisms.linformer import segment_matrix, segment_means
from hf_longattn.mechanisms.nystrom import pseudo_inverse
from tests.cells import every_cell
from tests.mechanisms.definition import assert_equals_its_definition


def built(**options: Any) -> Any:
    module = build_mechanism("nystrom", num_heads=4, head_dim=8, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def padding(length: int) -> Tensor:
    mask = torch.ones(4, length, dtype=torch.bool)
    mask[1, : length // 3] = False
    mask[2, 7:] = False  # fewer tokens than landmarks
    mask[3] = False
    return mask


@every_cell("start", ["exact", "original"])
@every_cell("conv_kernel", [None, 1, 9])
@every_cell("length", [12, 150])
def test_every_option_equals_the_definition(length: int, conv_kernel: int | None, start: str) -> None:
    torch.manual_seed(0)
    module = built(num_landmarks=16, conv_kernel=conv_kernel, inv_coeff_init_option=start)
    q = torch.randn(4, 4, length, 8, requires_grad=True)
    k, v = (torch.randn(4, 2, length, 8, requires_grad=True) for _ in range(2))
    for mask in (None, padding(length)):
        assert_equals_its_definition(module, q, k, v, mask)


def test_padding_changes_nothing_beside_texts_of_other_lengths() -> None:
    module = built(num_landmarks=16, conv_kernel=5)
    texts = [torch.randn(3, 1, 4, length, 8) for length in (9, 16, 17, 120)]
    for before in (0, 30, 11):
        batch = torch.zeros(3, 4, 4, 160, 8)
        mask = torch.zeros(4, 160, dtype=torch.bool)
        for row, text in enumerate(texts):
            place = slice(before, before + text.shape[3])
            batch[:, row, :, place] = text[:, 0]
            mask[row, place] = True
        out = attend(*batch, mechanism=module, padding_mask=mask)
        for row, text in enumerate(texts):
            torch.testing.assert_close(out[row, :, mask[row]], attend(*text, mechanism=module)[0], atol=1e-5, rtol=0)


def test_landmarks_that_a_short_text_leaves_empty_do_not_count_in_the_norm_of_the_batch() -> None:
    """The norm of one token's matrix is 1, and no norm is less."""
    module = built(num_landmarks=16, inv_coeff_init_option="original")
    batch = torch.randn(3, 2, 4, 120, 8)
    mask = torch.ones(2, 120, dtype=torch.bool)
    mask[1, 1:] = False
    for route in (attend, reference_attend):
        torch.testing.assert_close(route(*batch, module, padding_mask=mask)[0], route(*batch[:, :1], module)[0], atol=1e-5, rtol=0)


def test_a_convolution_begins_as_nothing() -> None:
    q, k, v = torch.randn(3, 1, 4, 100, 8)
    module = build_mechanism("nystrom", num_heads=4, head_dim=8, num_landmarks=16, conv_kernel=9)
    assert torch.equal(attend(q, k, v, module), attend(q, k, v, "nystrom", num_landmarks=16))


def test_more_landmarks_and_iterations_come_nearer_to_softmax_attention() -> None:
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.randn(12, 8, 16), 256, mode="linear").transpose(1, 2).unflatten(0, (3, 1, 4))
    full = reference_attend(*smooth, "full")
    errors = [float((attend(*smooth, "nystrom", num_landmarks=m, iterations=12) - full).norm() / full.norm()) for m in (4, 16, 64)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_the_iterations_reach_the_pseudo_inverse() -> None:
    torch.manual_seed(0)
    a = torch.softmax(3 * torch.randn(2, 3, 12, 12, dtype=torch.float64), -1)
    for per_matrix in (True, False):
        torch.testing.assert_close(pseudo_inverse(a, 30, per_matrix), torch.linalg.pinv(a))
    assert not torch.allclose(pseudo_inverse(a, 2, True), pseudo_inverse(a, 2, False))


@every_cell("length", [1, 7, 8, 9, 16, 61, 64])
def test_segments_are_nearly_equal_runs(length: int) -> None:
    matrix = segment_matrix(torch.ones(1, length, dtype=torch.bool), 8, torch.float64)[0]
    sizes = (matrix > 0).sum(-1)
    assert int(sizes.sum()) == length
    assert int(sizes.max() - sizes.min()) <= 1
    assert sizes.tolist() == sorted(sizes.tolist())
    assert (matrix > 0).int().argmax(0).tolist() == sorted((matrix > 0).int().argmax(0).tolist())
    x = torch.randn(1, 1, length, 3, dtype=torch.float64)
    torch.testing.assert_close(segment_means(x, 8)[0, 0], (matrix @ x[0, 0])[sizes > 0])


@every_cell(
    ("options", "sentence"),
    [
        ({"num_landmarks": 0}, "'num_landmarks'.*is 0, but must be at least 1"),
        ({"iterations": 0}, "'iterations'.*is 0"),
        ({"conv_kernel": 4}, "'conv_kernel'.*is 4, but must be odd"),
        ({"inv_coeff_init_option": "exactly"}, "Did you mean 'exact'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        built(**options)


def test_fewer_queries_and_causality_are_refused() -> None:
    q, k, v = torch.randn(3, 1, 4, 40, 8)
    with pytest.raises(LengthError, match=r"3 queries came with 40 keys; give as many queries as keys"):
        attend(q[:, :, -3:], k, v, "nystrom", num_landmarks=8)
    with pytest.raises(OptionError, match="exists only with causal=False"):
        attend(q, k, v, "nystrom", causal=True, num_landmarks=8)
