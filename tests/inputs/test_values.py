"""Excerpts of a user's files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hf_longattn.inputs.sound_inputs import Sounds


def test_excerpts_take_every_recording_before_a_second_of_any() -> None:
    """The first of each, then the second of each."""
    spec: Any = SimpleNamespace(length=int, step=lambda config: 1, as_input=lambda row: row, arguments=lambda row: row)
    sounds, size = Sounds(spec, None, Path(), count=3, processor=object()), SimpleNamespace(value=4)
    vars(sounds)["rows"] = [torch.arange(10)[None], 100 + torch.arange(9)[None]]
    assert [values.tolist() for values in sounds.pieces(size)] == [[[0, 1, 2, 3]], [[100, 101, 102, 103]], [[4, 5, 6, 7]]]  # type: ignore[arg-type, attr-defined]
