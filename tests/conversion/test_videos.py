"""Models of videos are planned, converted and verified as models of images are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from hf_longattn.conversion import ConversionReport, convert_checkpoint, inspect_checkpoint, plan_conversion
from hf_longattn.errors import CheckpointError, GridError, LongAttentionError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.inputs import grid
from hf_longattn.inputs.common.processors import processed_size, processor_of
from hf_longattn.processor_files import FILE, VIDEO_FILE

from ..modeling import grid_models

HEADS = [("videomae", "VideoMAEForVideoClassification"), ("videomae", "VideoMAEForPreTraining"), ("vjepa2", "VJEPA2ForVideoClassification")]


def saved(base: str, head: str, folder: Path, side: int = 32) -> Path:
    """A small checkpoint with the file of its processor, as published ones have it."""
    grid_models.saved(base, head, folder)
    if base == "videomae":
        sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        VideoMAEImageProcessorPil(**sizes).save_pretrained(folder)
    else:
        values = {"crop_size": side, "size": {"shortest_edge": int(side * 256 / 224)}, "do_center_crop": True, "do_resize": True}
        (folder / VIDEO_FILE).write_text(json.dumps({**values, "video_processor_type": "VJEPA2VideoProcessor"}))
    return folder


def statuses(report: ConversionReport) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def values(folder: Path, file: str) -> dict[str, Any]:
    return json.loads((folder / file).read_text())


@pytest.mark.parametrize(("base", "head"), HEADS)
def test_a_model_is_converted_and_verified(base: str, head: str, tmp_path: Path) -> None:
    source, long = saved(base, head, tmp_path / "short"), tmp_path / "long"
    report = convert_checkpoint(source, long, image_size=64, frames=8)
    assert report.passed
    if head.endswith("ForVideoClassification"):
        assert report.next_step is not None
        assert "train classify --model {model} --videos --data YOUR_VIDEOS" in " ".join(report.next_step["command"])
    assert {"tensors", "image processor", "equal at the new size with full attention", grid.CROPS, "finite at the new size"} <= {
        check for check, status in statuses(report).items() if status == "passed"
    }
    assert (report.plan["old_video_size"], report.plan["new_video_size"]) == ([4, 32, 32], [8, 64, 64])
    assert (report.plan["old_length"], report.plan["new_length"]) == (128, 1024)
    config, rule = values(long, "config.json"), FAMILIES[base].rule
    assert rule is not None
    assert (config["long_image_size"], config["long_num_frames"], config["position_extension"]) == ([64, 64], 8, "tile")
    assert (config["frames_per_clip" if base == "vjepa2" else "num_frames"], config[rule.side]) == (4, 32)  # as they were trained
    assert config["long_attention"]["window"] == [2, 8, 8]
    assert inspect_checkpoint(long).longest_input == "videos of 8 frames of 64 × 64 pixels, 1,024 tokens"
    processor = processor_of(rule, long)
    assert processed_size(processor) == (64, 64)
    frames = [torch.zeros(40, 90, 3, dtype=torch.uint8).numpy()] * 3
    assert processor is not None
    assert processor(frames, return_tensors="pt")["pixel_values"].shape == (1, 3, 3, 64, 64)
    assert "enlarged from videos of 4 × 32 × 32 to 8 × 64 × 64 frames and pixels" in (long / "README.md").read_text()


@pytest.mark.thorough
@pytest.mark.parametrize(("base", "head"), [HEADS[0], HEADS[2]])
def test_windows_of_a_rectangular_video(base: str, head: str, tmp_path: Path) -> None:
    """Frames alone, or pixels alone, may grow."""
    source = saved(base, head, tmp_path / "short")
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window2d", window="2+4+4", image_size="32x48", frames=12)
    checks = statuses(report)
    assert checks["equal at the new size with full attention"] == checks["image processor"] == "passed"
    assert (report.plan["positions"], report.plan["new_video_size"]) == ("interpolate", [12, 32, 48])
    assert any("does not cover" in check.detail or check.status == "needs training" for check in report.checks)
    assert plan_conversion(source, frames=8).to_dict()["new_video_size"] == [8, 32, 32]
    assert plan_conversion(source, image_size=64).to_dict()["new_video_size"] == [4, 64, 64]


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "error", "sentence"),
        [
            ({"frames": 7}, GridError, "A video has 7 frames, which is not a multiple of the tubelet's 2; leave frames out"),
            ({"frames": 2}, GridError, r"4 frames of 32 × 32 pixels and conversion only enlarges.*at least --image-size 32 --frames 4"),
            ({"image_size": 50}, GridError, "height of an input is 50 pixels"),
            ({"image_size": "8x64x64"}, GridError, "must have 2 numbers at most"),
            ({"max_length": 512}, OptionError, "reads videos; give the size as --image-size 448 --frames 32"),
            ({"audio_seconds": 3.0}, OptionError, "reads videos; give the size as --image-size 448 --frames 32"),
            ({"mechanism": "window", "frames": 8}, OptionError, "sees neighbours along a text"),
        ],
        ids=str,
    )
    def test_settings(self, settings: dict[str, Any], error: type[LongAttentionError], sentence: str, tmp_path: Path) -> None:
        source = saved(*HEADS[0], tmp_path / "short")
        with pytest.raises(error, match=sentence):
            plan_conversion(source, **settings)

    def test_frames_of_a_image(self, tmp_path: Path) -> None:
        grid_models.saved("vit", "ViTForImageClassification", tmp_path)
        with pytest.raises(OptionError, match=r"--frames is the number of frames of a video, but .* reads images"):
            plan_conversion(tmp_path, frames=8)

    @pytest.mark.parametrize(("base", "head"), [HEADS[0], HEADS[2]])
    def test_a_processor_that_makes_other_frames(self, base: str, head: str, tmp_path: Path) -> None:
        file, field = (FILE, "image_size") if base == "videomae" else (VIDEO_FILE, "crop_size")
        with pytest.raises(CheckpointError, match=rf"makes images of 28 × 28 pixels.* {field}=32; correct the size in {file}"):
            plan_conversion(saved(base, head, tmp_path, side=28), frames=8)
