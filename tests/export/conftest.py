"""Checkpoints to export: short ones, which a test converts, and long ones of one layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hf_longattn.families as families
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.reference.small_models import long_config

from ..conversion.conftest import built, checkpoint

__all__ = ["LENGTH", "built", "checkpoint", "saved"]

LENGTH = 1024


@pytest.fixture
def programs_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that an export has read back from its file, to verify it, is what the test gets; reading takes as
    long as exporting."""
    load, programs = torch.export.load, list[torch.export.ExportedProgram]()

    def load_once(file: Any, **settings: Any) -> torch.export.ExportedProgram:
        if not programs:
            programs.append(load(file, **settings))
        return programs[0]

    monkeypatch.setattr(torch.export, "load", load_once)


def saved(
    folder: Path, mechanism: str = "longformer", base: str = "bert", head: str = "LongBertModel", **options: Any
) -> Path:
    chosen = {
        "mechanism": mechanism,
        **mechanism_class(mechanism).about.sample,
        **options,
    }
    config = long_config(base, chosen, num_hidden_layers=1, max_position_embeddings=LENGTH)
    torch.manual_seed(0)
    getattr(families, head)(config).save_pretrained(folder)
    return folder
