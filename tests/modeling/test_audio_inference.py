"""Long models of sound made fast for inference, and the paths that their layers take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hf_longattn
from hf_longattn.engines.cpu.onednn import cpu_computes_bf16
from tests.cells import every_cell
from tests.modeling.audio_models import EVERY_FAMILY, inputs_of, long_model, saved, smallest_head

WINDOW = {"mechanism": "window", "left": 6, "right": 3}


def model_of(base: str, folder: Path) -> Any:
    saved(base, smallest_head(base), folder)
    return long_model(base, smallest_head(base), folder, long_attention=WINDOW)


@pytest.mark.thorough
@every_cell("base", EVERY_FAMILY, of=4)
@torch.no_grad()
def test_every_family_is_made_fast_and_explained(base: str, tmp_path: Path) -> None:
    model, inputs = model_of(base, tmp_path), inputs_of(base, (1.2,))
    layers = [answer for answer in hf_longattn.explain(model, inputs) if answer.mechanism == "window"]
    assert len({answer.layer for answer in layers}) == 2
    expected = model(**inputs)[0].float()
    for precision in ("fp32", "bf16", "int8") if cpu_computes_bf16() else ("fp32",):
        fast = hf_longattn.optimize_for_inference(model_of(base, tmp_path), precision)
        states = fast(**inputs)[0].float()
        assert states.isfinite().all()
        error = float((states - expected).norm() / expected.norm())
        assert error < {"fp32": 1e-5, "bf16": 0.2, "int8": 0.3}[precision], precision
