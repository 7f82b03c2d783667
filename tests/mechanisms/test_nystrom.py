"""nystrom: options against the definition, and the pseudo-inverse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.mechanisms.nystrom import pseudo_inverse
from tests.cases import every_case
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


@every_case("start", ["exact", "original"])
@every_case("conv_kernel", [None, 1, 9])
@every_case("length", [12, 150])
def test_nystrom_equals_its_definition_with_every_option(length: int, conv_kernel: int | None, start: str) -> None:
    torch.manual_seed(0)
    module = built(num_landmarks=16, conv_kernel=conv_kernel, inv_coeff_init_option=start)
    q = torch.randn(4, 4, length, 8, requires_grad=True)
    k, v = (torch.randn(4, 2, length, 8, requires_grad=True) for _ in range(2))
    for mask in (None, padding(length)):
        assert_equals_its_definition(module, q, k, v, mask)


def test_empty_nystrom_landmarks_of_a_short_text_do_not_count_in_the_norm() -> None:
    """The norm of one token's matrix is 1, and no norm is less."""
    module = built(num_landmarks=16, inv_coeff_init_option="original")
    batch = torch.randn(3, 2, 4, 120, 8)
    mask = torch.ones(2, 120, dtype=torch.bool)
    mask[1, 1:] = False
    for route in (attend, reference_attend):
        torch.testing.assert_close(route(*batch, module, padding_mask=mask)[0], route(*batch[:, :1], module)[0], atol=1e-5, rtol=0)


def test_the_convolution_of_nystrom_begins_as_zero() -> None:
    q, k, v = torch.randn(3, 1, 4, 100, 8)
    module = build_mechanism("nystrom", num_heads=4, head_dim=8, num_landmarks=16, conv_kernel=9)
    assert torch.equal(attend(q, k, v, module), attend(q, k, v, "nystrom", num_landmarks=16))


def test_the_iterations_of_nystrom_reach_the_pseudo_inverse() -> None:
    torch.manual_seed(0)
    a = torch.softmax(3 * torch.randn(2, 3, 12, 12, dtype=torch.float64), -1)
    for per_matrix in (True, False):
        torch.testing.assert_close(pseudo_inverse(a, 30, per_matrix), torch.linalg.pinv(a))
    assert not torch.allclose(pseudo_inverse(a, 2, True), pseudo_inverse(a, 2, False))
