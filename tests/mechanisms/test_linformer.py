"""linformer: every projection and sharing against its definition, any padding and length, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, reference_attend
from hf_longattn.errors import InputError
from hf_longattn.mechanisms.linformer import SHARINGS
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
    with pytest.raises(InputError, match=r"65 tokens.*rows for 64; shorten it, or .*max_length=65 or projection='pooling'\.$"):
        attend(*torch.randn(3, 1, 4, 65, 8), "linformer", rank=8, max_length=64)
