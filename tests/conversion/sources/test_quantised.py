"""Quantised sources are refused, with what to do instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.errors import CheckpointError
from tests.cases import every_case


@every_case(
    ("settings", "method"),
    [({"load_in_8bit": True}, "an unnamed method"), ({"quant_method": "gptq", "bits": 4}, "gptq")],
)
def test_convert_refuses_quantised_source(settings: dict[str, Any], method: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("LlamaForCausalLM")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    for refuse in (plan_conversion, convert_checkpoint):
        with pytest.raises(CheckpointError, match=rf"quantised weights \({method}\), .* give the checkpoint that it was quantised from\."):
            refuse(source, tmp_path / "long", mechanism="window", window=16)
    assert not (tmp_path / "long").exists()
