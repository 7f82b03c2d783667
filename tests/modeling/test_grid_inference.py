"""Models of images after ``optimize_for_inference``: in bf16 bit for bit what the model in bf16 computes, in 8 bits near to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longattn.families import FAMILIES
from tests.cases import every_case

from . import grid_models

FLOAT_POSITIONS = ("dinov3_vit",)
"""Bases whose rotary frequencies stay in float32, where ``to(torch.bfloat16)`` would round them."""


def outputs(model: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [value for value in grid_models.tensors(model(**inputs)) if value.is_floating_point()]


@pytest.mark.thorough
@every_case("base", grid_models.BASES, of=4)
def test_optimised_models_of_images_equal_bf16_and_are_near_in_int8(base: str, tmp_path: Path) -> None:
    head, mechanism = grid_models.base_model(base), {"mechanism": "window2d", "window": 3}
    grid_models.saved(base, head, tmp_path)
    size = (40, 24) if FAMILIES[base].spec.interpolates or FAMILIES[base].spec.shapes else (32, 32)
    inputs = grid_models.inputs_of(base, size)
    load = lambda: grid_models.long_model(base, head, tmp_path, long_attention=mechanism)  # noqa: E731
    exact = outputs(load(), inputs)
    rounded = load().to(torch.bfloat16)
    expected = outputs(
        rounded, {name: x.to(torch.bfloat16) if x.is_floating_point() and name != "noise" else x for name, x in inputs.items()}
    )
    fast = load().optimize_for_inference("bf16")
    measured = outputs(fast, inputs)
    if base not in FLOAT_POSITIONS:
        for value, wanted in zip(measured, expected, strict=True):
            assert torch.equal(value.float(), wanted.float())
    small = outputs(load().optimize_for_inference("int8"), inputs)
    for value, of_int8, wanted in zip(measured, small, exact, strict=True):
        rounding = (value.float() - wanted).norm()
        assert rounding < 0.2 * wanted.norm()
        assert (of_int8.float() - wanted).norm() < 0.1 * wanted.norm() + 2 * rounding
    plain = outputs(load().optimize_for_inference("fp32"), inputs)
    torch.testing.assert_close(plain, exact, rtol=1e-5, atol=1e-5)  # SigLIP's pooling is fused without gradients
