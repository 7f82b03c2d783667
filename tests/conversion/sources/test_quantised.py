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
    ("settings", "sentence"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            r"quantised weights \(bitsandbytes\): .* with LlamaForCausalLM\.from_pretrained\(folder\)\.dequantize\(\)\.save_pretrained",
        ),
        ({"load_in_8bit": True}, r"quantised weights \(bitsandbytes\): .*\.dequantize\(\)"),
        (
            {"quant_method": "gptq", "bits": 4},
            r"quantised weights \(gptq\): convert the checkpoint that it was quantised from, and quantise the result\.$",
        ),
        ({"quant_method": "fp8"}, r"quantised weights \(fp8\): .*FineGrainedFP8Config\(dequantize=True\)"),
        ({"bits": 2}, r"quantised weights \(an unnamed method\): convert the checkpoint"),
    ],
)
def test_convert_refuses_quantised_source(settings: dict[str, Any], sentence: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("LlamaForCausalLM")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    for refuse in (plan_conversion, convert_checkpoint):
        with pytest.raises(CheckpointError, match=sentence):
            refuse(source, tmp_path / "long", mechanism="window", window=16)
    assert not (tmp_path / "long").exists()


def test_dequantising_that_refusals_advise_exists_in_transformers() -> None:
    import transformers

    for name in ("FineGrainedFP8Config", "Mxfp4Config"):
        assert getattr(transformers, name)(dequantize=True).dequantize
    assert callable(transformers.PreTrainedModel.dequantize)
