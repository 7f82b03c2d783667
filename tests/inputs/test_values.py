"""Numbers of tokens, and excerpts of a user's files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PatchTSTConfig, PatchTSTModel
from transformers.models.patchtst.modeling_patchtst import PatchTSTPatchify

from hf_longattn.inputs.plain import Series
from hf_longattn.inputs.sound import Sounds


@pytest.mark.parametrize("stride", [4, 8, 12])
def test_patches_of_a_series_are_those_of_transformers(stride: int) -> None:
    """Patches may overlap, and leave steps out."""
    config = PatchTSTConfig(context_length=128, patch_length=8, patch_stride=stride)
    series = Series.of(PatchTSTModel, config, None)
    assert series is not None
    assert series.patches.old == PatchTSTPatchify(config).num_patches


def test_excerpts_take_every_recording_before_a_second_of_any() -> None:
    """The first of each, then the second of each."""
    rule: Any = SimpleNamespace(length=int, step=lambda config: 1, as_input=lambda row: row, arguments=lambda row: row)
    sounds, size = Sounds(rule, None, Path(), count=3, processor=object()), SimpleNamespace(value=4)
    vars(sounds)["rows"] = [torch.arange(10)[None], 100 + torch.arange(9)[None]]
    assert [values.tolist() for values in sounds.pieces(size)] == [[[0, 1, 2, 3]], [[100, 101, 102, 103]], [[4, 5, 6, 7]]]  # type: ignore[arg-type, attr-defined]
