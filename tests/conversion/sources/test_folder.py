"""What is read of a folder, and which folders are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import FalconH1Config

from hf_longattn.conversion import plan_conversion
from hf_longattn.errors import CheckpointError
from hf_longattn.loading import read_config


def test_config_with_infinite_numbers_is_read_as_transformers_writes_it(tmp_path: Path) -> None:
    FalconH1Config(mamba_ssm_multipliers=None, time_step_limit=(0.0, float("inf"))).save_pretrained(tmp_path)
    assert "__float__" in (tmp_path / "config.json").read_text()
    assert read_config(tmp_path)["time_step_limit"] == [0.0, float("inf")]


def test_plan_refuses_a_file_and_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("{}")
    for name, sentence in (("file.txt", "is a file; give the folder"), ("missing folder", "There is no folder")):
        with pytest.raises(CheckpointError, match=sentence):
            plan_conversion(tmp_path / name)


def test_plan_refuses_a_folder_with_an_adapter(checkpoint: Callable[..., Path]) -> None:
    source = checkpoint("BertModel")
    (source / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds an adapter, not a model; merge it first: .*\.merge_and_unload\(\)"):
        plan_conversion(source)
