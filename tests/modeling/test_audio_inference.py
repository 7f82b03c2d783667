"""Long models of sound made fast for inference, and the paths that their layers take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_longattn
from hf_longattn.engines.cpu.onednn import cpu_computes_bf16
from tests.cases import every_case
from tests.modeling.audio_models import EVERY_FAMILY, inputs_of, long_model, saved, smallest_head

WINDOW = {"mechanism": "window", "left": 6, "right": 3}


def model_of(base: str, folder: Path) -> Any:
    saved(base, smallest_head(base), folder)
    return long_model(base, smallest_head(base), folder, long_attention=WINDOW)


def distance(states: Tensor, expected: Tensor) -> float:
    return float((states.float() - expected).norm() / expected.norm())


@pytest.mark.thorough
@every_case("base", EVERY_FAMILY, of=4)
@torch.no_grad()
def test_models_of_sound_are_optimised_for_inference_and_explained(base: str, tmp_path: Path) -> None:
    model, inputs = model_of(base, tmp_path), inputs_of(base, (1.2,))
    layers = [answer for answer in hf_longattn.explain(model, inputs) if answer.mechanism == "window"]
    assert len({answer.layer for answer in layers}) == 2
    expected = model(**inputs)[0].float()
    precisions: dict[str, float] = {"fp32": 1e-5}
    if cpu_computes_bf16():
        half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
        rounding = distance(model_of(base, tmp_path).bfloat16()(**half)[0], expected)
        precisions |= {"bf16": 1.1 * rounding, "int8": 1.1 * rounding + 0.05}
    for precision, most in precisions.items():
        fast = hf_longattn.optimize_for_inference(model_of(base, tmp_path), precision)
        states = fast(**inputs)[0]
        assert states.isfinite().all()
        assert distance(states, expected) < most, precision
