"""`longattn convert --generic` verifies classes of videos, spectrograms and features on inputs of their own shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hf_longattn import convert_checkpoint
from hf_longattn.errors import CheckpointError
from tests.cases import every_case

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SHAPE, "intermediate_size": 48}
PREDICTOR = {"pred_num_hidden_layers": 1, "pred_hidden_size": 32, "pred_num_attention_heads": 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "VideoMAEForVideoClassification": ("VideoMAEConfig", {**WIDE, "image_size": 32, "patch_size": 8, "num_frames": 4}),
    "VJEPA2Model": ("VJEPA2Config", {**SHAPE, **PREDICTOR, "crop_size": 32, "patch_size": 8, "frames_per_clip": 4}),
    "ASTForAudioClassification": ("ASTConfig", {**WIDE, "patch_size": 8, "num_mel_bins": 32, "max_length": 64}),
    "ParakeetForCTC": ("ParakeetCTCConfig", {"vocab_size": 30, "encoder_config": {**WIDE, "subsampling_conv_channels": 8}}),
}


@every_case("name", MODELS)
def test_generic_models_of_videos_and_sounds_are_compared_with_their_source(name: str, tmp_path: Path) -> None:
    config, values = MODELS[name]
    torch.manual_seed(0)
    getattr(transformers, name)(getattr(transformers, config)(**values)).save_pretrained(tmp_path / "short")
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", generic=True, mechanism="window", window=4)
    checks = {check.name: check.status for check in report.checks}
    assert checks["equal with the source's attention"] == checks["finite"] == "passed"
    assert checks["with the mechanism"] == "needs training"
    with pytest.raises(CheckpointError, match="has no Long classes; --generic may add mechanisms to its plain class"):
        convert_checkpoint(tmp_path / "short", tmp_path / "other", mechanism="window", window=4)
