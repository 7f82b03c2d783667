"""A folder without the usual weight files says what it has instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hf_longattn.conversion import plan_conversion
from hf_longattn.errors import CheckpointError


def test_a_variant_is_named(checkpoint: Callable[..., Path]) -> None:
    source = checkpoint("BertModel")
    (source / "model.safetensors").rename(source / "model.fp16.safetensors")
    with pytest.raises(CheckpointError, match=r"but 'model\.fp16\.safetensors'; where that is the whole model, rename it"):
        plan_conversion(source)
