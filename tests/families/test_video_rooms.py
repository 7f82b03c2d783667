"""Models of videos in the rooms of images: search, diagnosis and training, by folders of frames and arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hf_longattn
from hf_longattn.cli import main
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.sources import DataError
from hf_longattn.engines.common.grid import Grid
from hf_longattn.errors import OptionError
from hf_longattn.inspect import diagnose
from tests.conversion.test_videos import saved
from tests.grids import grid

CLASSIFIERS = [("videomae", "VideoMAEForVideoClassification"), ("vjepa2", "VJEPA2ForVideoClassification")]


def in_turn(first: int) -> list[Any]:
    """The classifiers, of which one is quick."""
    return grid(CLASSIFIERS, lambda base, head: (base, head) == CLASSIFIERS[first])


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two labels with three videos each: folders of frames, of which one is an array."""
    random = np.random.default_rng(0)
    for shade, label in enumerate(("dark", "light")):
        for number in range(3):
            values = random.integers(0, 100, (8, 40, 56, 3), dtype=np.uint8) + 150 * shade
            folder = tmp_path / "videos" / label / f"clip{number}"
            folder.parent.mkdir(parents=True, exist_ok=True)
            if number == 2:
                np.save(folder.with_suffix(".npy"), values.astype(np.uint8))
                continue
            folder.mkdir()
            for frame, image in enumerate(values.astype(np.uint8)):
                Image.fromarray(image).save(folder / f"{frame}.png")
    return tmp_path / "videos"


@pytest.mark.thorough
@pytest.mark.parametrize(("base", "head"), in_turn(0))
def test_diagnosed(base: str, head: str, videos: Path, tmp_path: Path) -> None:
    source, clip = saved(base, head, tmp_path / "short"), videos / "light" / "clip0"
    convert_checkpoint(source, tmp_path / "long", mechanism="window2d", window="2+3+3", image_size=40, frames=8, verify=False)
    diagnosis = diagnose(tmp_path / "long", clip)
    image = diagnosis.image
    assert image is not None
    assert (image.grid, image.noun) == (Grid((4, 10, 10)), "video")
    attention = diagnosis.last.layers[0].attention
    assert attention is not None
    assert attention.shape == (4, 10, 10)


@pytest.mark.parametrize(("base", "head"), in_turn(1))
def test_a_mechanism_is_searched_by_videos(base: str, head: str, videos: Path, tmp_path: Path) -> None:
    source = saved(base, head, tmp_path / "short")
    candidates = ["window2d:window=2+3+3", "window2d:window=2+4+4"]
    settings: dict[str, Any] = {"budget": 2.0, "image_size": 40, "frames": 8, "candidates": candidates, "pieces": 2, "queries": 16}
    result = hf_longattn.search_design(source, videos / "light", **settings)
    assert result.compared_sizes()["video_size"] == [8, 40, 40]
    assert {name.partition(":")[0] for name in result.chosen.design.names} <= {"window2d"}
    with pytest.raises(OptionError, match="reads videos, by which mechanisms are chosen; give a folder of frames"):
        hf_longattn.search_design(source, "a text", **settings)
    with pytest.raises(DataError, match="has 8 frames, but the model reads 12"):
        hf_longattn.search_design(source, videos / "light", **{**settings, "frames": 12})


@pytest.mark.parametrize(("base", "head"), in_turn(0))
def test_videos_are_classified(base: str, head: str, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(base, head, tmp_path / "short")
    convert_checkpoint(source, tmp_path / "long", image_size=40, frames=8, window="2+5+5", verify=False)
    torch.manual_seed(0)
    command = ["train", "classify", "--videos", "--model", str(tmp_path / "long"), "--data", str(videos), "--validation", str(videos)]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--output", str(tmp_path / "trained"), "--max-steps", "2", "--use-cpu"])
    assert not ended.value.code, capsys.readouterr().err
    log = json.loads((tmp_path / "trained" / "training_log.json").read_text())
    assert (log["classes"], log["input_size"], log["videos"]) == (["dark", "light"], [8, 40, 40], {"train": 6, "held_out": 6})
    with pytest.raises(SystemExit):
        main([*command[:2], *command[3:], "--output", str(tmp_path / "texts")])
    assert "it reads videos: add --videos" in capsys.readouterr().err


def test_commands_answer_bad_videos_with_a_sentence(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(*CLASSIFIERS[0], tmp_path / "short")
    (tmp_path / "clip.mp4").write_bytes(b"?")
    for command, words in {
        ("inspect", str(source), str(tmp_path / "clip.mp4")): "extract its frames, for example with mkdir frames && ffmpeg -i clip.mp4",
        ("inspect", str(source), str(videos / "light" / "clip0" / "0.png")): "is an image, but the model reads videos of 4 frames",
        ("inspect", str(source), str(videos / "light" / "clip0"), "--lengths", "8"): "measured at one size; leave --lengths out",
    }.items():
        with pytest.raises(SystemExit) as ended:
            main(list(command))
        assert ended.value.code
        assert words in " ".join(capsys.readouterr().err.split())
