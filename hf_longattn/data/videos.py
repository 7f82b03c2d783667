"""Videos as folders of numbered images, or arrays in files. An encoded video is refused with the command that extracts its frames."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from hf_longattn.constants import CODEC_SUFFIXES, FRAMES_SUFFIX, VIDEO_SUFFIXES
from hf_longattn.data.files import evenly_spread, folder_of_split
from hf_longattn.data.images import EXTRA, SUFFIXES, read_image_file
from hf_longattn.data.sources import DataError, label_folders
from hf_longattn.errors import CheckpointError, needs_extra
from hf_longattn.loading import load_part, loading_errors
from hf_longattn.modeling.family.definition import known_family
from hf_longattn.processor_files import PROCESSOR_FILE, VIDEO_PROCESSOR, ProcessorFile

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel

MARGIN = 256 / 224
"""Shorter side of a frame divided by the side of its crop, as in V-JEPA 2's video processor."""
COLOURS = (1, 3)
NUMBERS = re.compile(r"(\d+)")
WHAT = "a folder of numbered images (frames/00001.png …), or an array of frames (.npy)"


def video_places(path: Path) -> list[Path]:
    """The videos at a path, sorted by name. A file or a folder of images is one; another folder holds arrays or folders of images.

    Raises:
        DataError: there is none.
    """
    if path.is_file() or (path.is_dir() and _frame_files(path)):
        return [path]
    if not path.is_dir():
        raise DataError(f"{str(path)!r} does not exist; give {WHAT}.")
    entries = [entry for entry in sorted(path.iterdir(), key=_by_number) if not entry.name.startswith(".")]
    videos = [entry for entry in entries if (_frame_files(entry) if entry.is_dir() else entry.suffix.lower() in VIDEO_SUFFIXES)]
    if not videos:
        raise DataError(f"The folder {str(path)!r} holds no videos; give {WHAT}, or a folder with one such folder or file for each video.")
    return videos


def read_video(path: Path, frames: int) -> list[Image]:
    """As many as ``frames`` of a video in RGB, evenly spread from the first to the last.

    Args:
        path: a folder of images, in the order of the numbers in their names, or an array ``(frames, channels, height, width)`` or
            ``(frames, height, width, channels)`` of whole numbers from 0 to 255, or of numbers from 0 to 1.
        frames: that the model reads.
    Raises:
        MissingExtraError: Pillow is not installed.
        DataError: the path is not a video, has too few frames, frames of several sizes, or frames that cannot be read.
    """
    kind = path.suffix.lower()
    if kind in CODEC_SUFFIXES:
        raise DataError(
            f"{str(path)!r} is a video file, which is not decoded here; extract its frames, for example with mkdir frames && ffmpeg -i "
            f"{path.name} frames/%05d.png, and give that folder."
        )
    if path.is_file() and kind in SUFFIXES:
        raise DataError(f"{str(path)!r} is an image, but the model reads videos of {frames} frames; give {WHAT}.")
    if path.is_file() and kind != FRAMES_SUFFIX:
        raise DataError(f"{str(path)!r} is not a video; give {WHAT}.")
    if path.is_dir():
        files = _frame_files(path)
        _check_count(path, len(files), frames)
        images = [read_image_file(file) for file in evenly_spread(files, frames)]
        _check_sizes(path, (image.size for image in images))
        _check_sizes(path, map(_size_in_header, files))
        return images
    return _frames_of_array(path, frames)


def _frames_of_array(path: Path, frames: int) -> list[Image]:
    with needs_extra(EXTRA):
        from PIL import Image as Pillow

    try:
        values: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise DataError(f"The array {str(path)!r} is damaged, or not an array of numbers; write it with numpy.save ({first}).") from error
    shape: tuple[int, ...] = getattr(values, "shape", ())
    if len(shape) != 4 or (shape[1] not in COLOURS and shape[3] not in COLOURS):
        raise DataError(
            f"The array {str(path)!r} has shape {tuple(shape)}, but a video is (frames, channels, height, width) or (frames, height, "
            "width, channels) with 3 channels or 1."
        )
    _check_count(path, len(values), frames)
    chosen = np.stack([np.asarray(values[number]) for number in evenly_spread(range(len(values)), frames)])
    if shape[3] not in COLOURS:
        chosen = np.moveaxis(chosen, 1, 3)
    if np.issubdtype(chosen.dtype, np.floating) and np.isfinite(chosen).all() and chosen.min() >= 0 and chosen.max() <= 1:
        chosen = (chosen * 255).round()
    elif not np.issubdtype(chosen.dtype, np.integer) or chosen.min() < 0 or chosen.max() > 255:
        raise DataError(f"The array {str(path)!r} has other values than whole numbers from 0 to 255 or numbers from 0 to 1; scale it.")
    return [Pillow.fromarray(frame.astype(np.uint8).repeat(3 // frame.shape[2], 2)) for frame in chosen]


def _check_count(path: Path, count: int, frames: int) -> None:
    if count < frames:
        raise DataError(f"The video {str(path)!r} has {count} frames, but the model reads {frames}; extract more, or give a longer video.")


def _check_sizes(path: Path, sizes: Iterable[tuple[int, int]]) -> None:
    if len(several := dict.fromkeys(sizes)) > 1:
        first, second = (f"{height} × {width}" for width, height in list(several)[:2])
        raise DataError(f"The video {str(path)!r} has frames of several sizes, {first} and {second} pixels; extract them from one video.")


def _size_in_header(file: Path) -> tuple[int, int]:
    """(width, height) of a frame, also of one that is not read."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(file) as image:
            return image.size
    except Exception:  # whatever a damaged file raises
        return read_image_file(file).size  # which raises the error


def _frame_files(folder: Path) -> list[Path]:
    """The images directly in a folder, by the numbers in their names."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file())
    return sorted(files, key=_by_number)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sort key by the numbers in a name: frame2 before frame10."""
    parts = NUMBERS.split(path.name)
    return [(int(part), "") if number % 2 else (-1, part) for number, part in enumerate(parts)]


def load_labelled_videos(source: str, *, split: str = "train") -> Dataset:
    """Read the paths of videos and the names of their labels. :func:`read_video` reads the videos.

    Args:
        source: a folder with one sub-folder of videos per label, or such a folder for each split.
        split: which split, if the source has several.

    Returns:
        A dataset with the columns ``video`` (path), ``label`` (text) and ``name``.

    Raises:
        DataError: the source is not such a folder, or a sub-folder holds no videos.
    """
    path = Path(source)
    if not path.is_dir():
        raise DataError(f"{source!r} is not a folder; videos to classify are a folder with one sub-folder per label, each with {WHAT}.")
    rows = [(str(place), folder.name) for folder in label_folders(folder_of_split(path, split), "videos") for place in video_places(folder)]
    return Dataset.from_dict(
        {"video": [place for place, _ in rows], "label": [label for _, label in rows], "name": [row[0] for row in rows]}
    )


class VideoCollator:
    """Batches of videos and labels: the model's input ``(B, frames, 3, H, W)`` as the processor makes it, and ``labels (B,)``.

    Args:
        processor: the model's.
        names: of the labels, in the order of their numbers.
        argument: of ``forward`` with the video.
        frames: that the model reads.
    """

    def __init__(self, processor: Any, names: Sequence[str], argument: str, frames: int) -> None:
        self.processor, self.argument, self.frames = processor, argument, frames
        self.numbers = {name: number for number, name in enumerate(names)}

    @classmethod
    def of(cls, model: PreTrainedModel, processor: Any, names: Sequence[str]) -> VideoCollator:
        """The collator of a model, with the model's number of frames."""
        family = known_family(model.config)
        frames = model.config.num_frames if family is None else family.rule.sizes(model.config)[1][0]
        return cls(processor, names, model.main_input_name, frames)

    def pixels(self, place: str) -> Tensor:
        """A video as the model reads it, ``(1, frames, 3, H, W)``.

        Raises:
            DataError: as :func:`read_video`.
        """
        return frames_as_pixels(self.processor, read_video(Path(place), self.frames))

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch of rows of :func:`load_labelled_videos`."""
        pixels = torch.cat([self.pixels(row["video"]) for row in features])
        return {self.argument: pixels, "labels": torch.tensor([self.numbers[row["label"]] for row in features])}


def checked_frames(model: PreTrainedModel, collator: VideoCollator, place: str) -> tuple[int, ...]:
    """Frames, height and width of the videos that a collator makes, seen on one of them.

    Raises:
        CheckpointError: the model was converted for another size, so the processor would shrink videos silently.
        DataError: as :func:`read_video`.
    """
    frames, _, *sides = collator.pixels(place).shape[1:]
    converted = getattr(model.config, "long_image_size", None)
    if converted is not None and list(converted) != sides:
        raise CheckpointError(
            f"The processor of {model.name_or_path!r} makes frames of {' × '.join(map(str, sides))} pixels, but the model was converted "
            f"for {' × '.join(map(str, converted))}; set its size to these."
        )
    return frames, *sides


def frames_as_pixels(processor: Any, frames: Sequence[Any]) -> Tensor:
    """The frames of a video as a processor makes them, ``(1, frames, channels, height, width)``."""
    values = torch.as_tensor(processor(list(frames), return_tensors="pt")["pixel_values"])
    return values if values.dim() == 5 else values[None]


def frame_processor(values: Mapping[str, Any]) -> Any:
    """A frame processor with the values of a video processor's file, without torchvision: VideoMAE's processor on Pillow. It resizes the
    shorter side of every frame, crops the centre, rescales and normalises, as V-JEPA 2's does with torchvision."""
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

    crop = values.get("crop_size")
    side = crop.get("height") if isinstance(crop, Mapping) else crop
    if not isinstance(side, int):
        return VideoMAEImageProcessorPil.from_dict(dict(values))
    sides = dict(crop) if isinstance(crop, Mapping) else {"height": side, "width": side}
    return VideoMAEImageProcessorPil.from_dict({**values, "crop_size": sides, "size": {"shortest_edge": int(side * MARGIN)}})


def load_frame_processor(name: str) -> Any:
    """The processor of a checkpoint's videos.

    Args:
        name: a folder or a Hub repository id.

    Raises:
        CheckpointError: the checkpoint has no processor, or transformers cannot load it.
    """
    from transformers import AutoImageProcessor
    from transformers.utils import cached_file

    with loading_errors(name, "video processor"):
        files = [cached_file(name, file, _raise_exceptions_for_missing_entries=False) for file in (PROCESSOR_FILE, VIDEO_PROCESSOR.file)]
        place = next((ProcessorFile.find(Path(file).parent, VIDEO_PROCESSOR) for file in files if file is not None), None)
        return load_part(AutoImageProcessor, name, "image processor") if place is None else frame_processor(place.values)
