"""Videos as folders of frames and as arrays: what is read, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_longattn.data.sources import DataError
from hf_longattn.data.videos import frame_processor, frames_as_pixels, load_labelled_videos, read_video, video_places


def frames_in(folder: Path, count: int = 12, size: tuple[int, int] = (40, 30), name: str = "frame{}.png") -> Path:
    """A folder of images whose grey is their number."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", size, (number, number, number)).save(folder / name.format(number))
    return folder


def greys(frames: list[Any]) -> list[int]:
    return [frame.getpixel((0, 0))[0] for frame in frames]


def test_frames_are_in_the_order_of_their_numbers_and_evenly_spread(tmp_path: Path) -> None:
    """frame2 before frame10, although the alphabet has it otherwise."""
    folder = frames_in(tmp_path / "clip")
    assert greys(read_video(folder, 12)) == list(range(12))
    assert greys(read_video(folder, 4)) == [0, 3, 7, 11]


@pytest.mark.parametrize("layout", ["channels first", "channels last", "grey", "from 0 to 1"])
def test_arrays(layout: str, tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((8, 30, 40, 3), dtype=np.uint8)
    stored = {"channels first": values.transpose(0, 3, 1, 2), "channels last": values, "grey": values[..., :1], "from 0 to 1": values / 255}
    np.save(tmp_path / "clip.npy", stored[layout])
    frames = read_video(tmp_path / "clip.npy", 4)
    assert greys(frames) == [0, 2, 4, 7]
    assert {frame.size for frame in frames} == {(40, 30)}


def test_places_of_videos(tmp_path: Path) -> None:
    first, second = frames_in(tmp_path / "videos" / "clip2"), frames_in(tmp_path / "videos" / "clip10")
    np.save(tmp_path / "videos" / "clip3.npy", np.zeros((8, 30, 40, 3), dtype=np.uint8))
    assert video_places(tmp_path / "videos") == [first, tmp_path / "videos" / "clip3.npy", second]
    assert video_places(first) == [first]


def test_labels_are_the_names_of_folders(tmp_path: Path) -> None:
    for label in ("walk", "run"):
        for number in range(2):
            frames_in(tmp_path / "train" / label / f"clip{number}", 4)
    rows = load_labelled_videos(str(tmp_path))
    assert [(row["label"], Path(row["video"]).name) for row in rows] == [
        ("run", "clip0"),
        ("run", "clip1"),
        ("walk", "clip0"),
        ("walk", "clip1"),
    ]


def test_a_video_processor_without_torchvision_resizes_crops_and_normalises(tmp_path: Path) -> None:
    """As V-JEPA 2's: the shorter side is 256 / 224 of the crop."""
    processor = frame_processor(
        {"crop_size": 28, "video_processor_type": "VJEPA2VideoProcessor", "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    )
    assert dict(processor.size)["shortest_edge"] == 32
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    pixels = frames_as_pixels(processor, [image] * 2)
    resized = np.asarray(image.resize((48, 32), Image.Resampling.BILINEAR)) / 255
    torch.testing.assert_close(pixels[0, 1], torch.tensor(resized[2:30, 10:38], dtype=torch.float32).permute(2, 0, 1), atol=1e-5, rtol=1e-5)
    assert pixels.shape == (1, 2, 3, 28, 28)


class TestRefusals:
    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            (np.zeros((8, 30, 40), dtype=np.uint8), r"has shape \(8, 30, 40\), but a video is \(frames, channels, height, width\)"),
            (np.zeros((8, 30, 40, 4), dtype=np.uint8), "with 3 channels or 1"),
            (np.zeros((3, 3, 30, 40), dtype=np.uint8), "has 3 frames, but the model reads 4; extract more"),
            (np.full((8, 30, 40, 3), 300), "other values than whole numbers from 0 to 255 or numbers from 0 to 1; scale it"),
            (np.full((8, 30, 40, 3), -0.5), "other values than whole numbers"),
            (np.full((8, 30, 40, 3), np.nan), "other values than whole numbers"),
            (np.array([{}] * 8, dtype=object), "is damaged, or not an array of numbers"),
        ],
    )
    def test_arrays(self, values: Any, sentence: str, tmp_path: Path) -> None:
        np.save(tmp_path / "clip.npy", values, allow_pickle=True)
        with pytest.raises(DataError, match=sentence):
            read_video(tmp_path / "clip.npy", 4)

    def test_files(self, tmp_path: Path) -> None:
        for name, sentence in {
            "clip.mp4": r"is a video file, which is not decoded here; extract its frames, .*ffmpeg -i clip.mp4 frames/%05d.png",
            "photo.png": "is an image, but the model reads videos of 4 frames; give a folder of numbered images",
            "notes.txt": "is not a video; give a folder of numbered images",
        }.items():
            (tmp_path / name).write_bytes(b"?")
            with pytest.raises(DataError, match=sentence):
                read_video(tmp_path / name, 4)

    def test_folders(self, tmp_path: Path) -> None:
        few = frames_in(tmp_path / "few", 3)
        with pytest.raises(DataError, match="has 3 frames, but the model reads 4"):
            read_video(few, 4)
        Image.new("RGB", (41, 30)).save(few / "frame3.png")
        with pytest.raises(DataError, match="has frames of several sizes, 30 × 40 and 30 × 41 pixels"):
            read_video(few, 4)
        with pytest.raises(DataError, match="has frames of several sizes"):
            read_video(few, 2)  # the first two of each half, of which the odd frame is none
        (few / "frame3.png").write_bytes((few / "frame0.png").read_bytes()[:40])
        with pytest.raises(DataError, match="is not an image, or of a format"):
            read_video(few, 4)
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="holds no videos; give a folder of numbered images"):
            video_places(tmp_path / "empty")
        with pytest.raises(DataError, match="does not exist"):
            video_places(tmp_path / "nowhere")
        with pytest.raises(DataError, match="is not a folder; videos to classify are a folder with one sub-folder per label"):
            load_labelled_videos(str(few / "frame0.png"))
