"""Configs and checkpoints of format 1, before its number was written, are read as they were meant (``stored_formats.json``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

import hf_longattn
from hf_longattn.files import FORMAT_FIELD as FIELD
from tests.cases import every_case

STORED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("stored_formats.json").read_text(encoding="utf-8"))
SINCE = ("transformers_version", FIELD)
"""Fields that say who wrote a file, and in which format."""


def written(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in SINCE}


@every_case("name", STORED["configs"])
def test_a_stored_config_is_read_and_written_again(name: str, tmp_path: Path) -> None:
    values = STORED["configs"][name]
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.long_attention.to_dict() == values["long_attention"]
    config.save_pretrained(tmp_path / "again")
    assert written(json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))) == written(values)


@pytest.mark.parametrize("name", STORED["checkpoints"])
def test_a_stored_checkpoint_is_loaded_whole(name: str, tmp_path: Path) -> None:
    stored = STORED["checkpoints"][name]
    generator = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(shape, generator=generator) for key, shape in stored["tensors"].items()}
    if name == "recurrent_memory":
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()  # tied
    (tmp_path / "config.json").write_text(json.dumps(stored["config"]), encoding="utf-8")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, report = getattr(hf_longattn, stored["class"]).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    loaded = model.state_dict()
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[key], value) for key, value in tensors.items())
