"""The image processor or the feature extractor of a checkpoint: the size of the inputs that it makes, and its file with another one.

Only the size is changed in the file, in the form that it has there (height and width, or the shortest edge and a crop), and what it was is
kept in it for the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.videos import VIDEO_FILE, frame_processor, frames_as_pixels
from ..errors import CheckpointError, GridError
from ..loading import load_part, loading_errors
from ..modeling.family.grid_rule import GridRule
from ..reading import read_json_object
from .grid_sizes import pixels
from .text_limits import FIELD_BEFORE

if TYPE_CHECKING:
    from ..data.audio import Samples
    from ..modeling.family.grid_rule import GridRule

FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
"""The file of a processor, of which transformers 5 makes the feature extractor's a part."""
IMAGE_PART = "image_processor"
"""The part of that file that is an image processor's."""
TYPE_FIELDS = ("image_processor_type", "feature_extractor_type", "video_processor_type")


def load_image_processor(folder: Path) -> Any | None:
    """The image processor in a checkpoint folder, as transformers loads it; ``None`` where it has none.

    Raises:
        CheckpointError: there is one, and transformers cannot load it.
    """
    from transformers import AutoImageProcessor

    if _image_values(folder) is None:  # which refuses a damaged file in its own words
        return None
    return load_part(AutoImageProcessor, folder, "image processor", local_files_only=True)


def _image_values(folder: Path, file: str = FILE) -> dict[str, Any] | None:
    """The values of a processor, from its own file or, of an image processor, from that of a processor that has it as a part; ``None``
    without."""
    if (folder / file).is_file():
        return read_json_object(folder / file)
    has_parts = file == FILE and (folder / PROCESSOR_FILE).is_file()
    part = read_json_object(folder / PROCESSOR_FILE).get(IMAGE_PART) if has_parts else None
    return part if isinstance(part, dict) else None


def image_files(folder: Path, values: Mapping[str, Any], file: str = FILE) -> dict[str, dict[str, Any]]:
    """The file of a processor with these values: its own, or that of a processor that has it as a part."""
    if (folder / file).is_file():
        return {file: dict(values)}
    return {PROCESSOR_FILE: {**read_json_object(folder / PROCESSOR_FILE), IMAGE_PART: dict(values)}}


def load_video_processor(folder: Path) -> Any | None:
    """What makes the frames of a checkpoint's videos, :func:`frame_processor` for a video processor; ``None`` where its folder has no file
    that says it.

    Raises:
        CheckpointError: there is one, and transformers cannot load it.
    """
    if not (folder / VIDEO_FILE).is_file():
        return load_image_processor(folder)
    with loading_errors(folder, "video processor"):
        return frame_processor(read_json_object(folder / VIDEO_FILE))


PROCESSOR_LOADERS: dict[str, Callable[[Path], Any | None]] = {"picture": load_image_processor, "video": load_video_processor}
"""What loads the processor of a checkpoint, by what its model reads."""


def processor_of(rule: GridRule, folder: Path) -> tuple[Any | None, str]:
    """The processor in a checkpoint folder of a model of pictures or videos, ``None`` where it has none, and the name of its file."""
    file = VIDEO_FILE if rule.noun == "video" and (folder / VIDEO_FILE).is_file() else FILE
    return PROCESSOR_LOADERS.get(rule.noun, load_image_processor)(folder), file


def load_feature_extractor(folder: Path) -> Any | None:
    """The feature extractor in a checkpoint folder, as transformers loads it; ``None`` where it has none.

    Raises:
        CheckpointError: there is one, and transformers cannot load it.
    """
    from transformers import AutoFeatureExtractor

    file = next((folder / name for name in (FILE, PROCESSOR_FILE) if (folder / name).is_file()), None)
    if file is None:
        return None
    read_json_object(file)  # refuses a damaged file in its own words
    return load_part(AutoFeatureExtractor, folder, "feature extractor", local_files_only=True)


def required_processor(processor: Any | None, name: str, inputs: str = "pictures") -> Any:
    """The image processor or the feature extractor of the model called ``name``, which reads these ``inputs``.

    Raises:
        CheckpointError: it has none.
    """
    if processor is None:
        raise CheckpointError(f"{name!r} has no {FILE}, which says how it reads {inputs}; copy that of its original there.")
    return processor


def sized_pixels(processor: Any, folder: Path, pictures: Sequence[Any], size: tuple[int, ...], name: str) -> Tensor:
    """Pictures of ``size``, height and width, as a checkpoint's processor makes them: its values of this ``name``, ``(B, channels, …)``.

    Raises:
        CheckpointError: the processor resizes pictures in a way that has no such size.
        GridError: the processor makes pictures of another size.
    """
    sized = type(processor).from_dict(file_of_size(folder, processor, size))
    values = [torch.as_tensor(sized(images=picture, return_tensors="pt")[name]) for picture in pictures]
    sizes = [tuple(picture.shape[2:]) for picture in values]
    if wrong := [picture_size for picture_size in sizes if picture_size != size]:
        raise GridError(
            f"The image processor in {str(folder)!r} makes pictures of {pixels(wrong[0])} where {pixels(size)} are needed; "
            f"set do_resize and size in its {FILE}."
        )
    return torch.cat(values)


def spectrograms(extractor: Any, sounds: Sequence[Samples], rule: GridRule, size: tuple[int, ...]) -> Tensor:
    """Spectrograms ``(B, frames, mel bins)`` of this ``size``, mel bins and frames, to which the feature extractor cuts or pads sounds."""
    sized = type(extractor).from_dict({**extractor.to_dict(), **rule.extractor_fields(size)})
    settings = {"sampling_rate": sized.sampling_rate, "return_tensors": "pt"}
    return torch.cat([sized(sound, **settings)[rule.input] for sound in sounds])


def sized_frames(rule: GridRule, processor: Any, folder: Path, videos: Sequence[Sequence[Any]], size: tuple[int, ...], name: str) -> Tensor:
    """Videos, each a list of as many frames, at ``size``, as a checkpoint's processor makes them, ``(B, channels, frames, height, width)``.

    Raises:
        CheckpointError: the processor resizes frames in a way that has no such size.
        GridError: the processor makes frames of another size.
    """
    file = processor_of(rule, folder)[1]
    values = file_of_size(folder, processor, size[-2:], file)
    sized = frame_processor(values) if file == VIDEO_FILE else type(processor).from_dict(values)
    pixels_of_videos = [frames_as_pixels(sized, frames) for frames in videos]
    sizes = {tuple(video.shape[-2:]) for video in pixels_of_videos}
    if wrong := sizes - {size[-2:]}:
        raise GridError(
            f"The processor in {str(folder)!r} makes frames of {pixels(wrong.pop())} where {pixels(size[-2:])} are needed by {name!r}; set "
            f"do_resize and size in its {file}."
        )
    return torch.cat(pixels_of_videos).transpose(1, 2)


def picture_size(processor: Any) -> tuple[int, int] | None:
    """Height and width of the pictures that a processor makes; ``None`` where that depends on the picture."""
    crop, size = _sizes(processor)
    fixed = crop or size
    return (fixed["height"], fixed["width"]) if fixed.keys() == {"height", "width"} else None


def file_of_size(folder: Path, processor: Any, size: tuple[int, ...], file: str = FILE) -> dict[str, Any]:
    """The values of a processor's file for pictures of ``size``, height and width.

    Raises:
        CheckpointError: it resizes pictures in a way that has no such size.
    """
    values = _image_values(folder, file) or {}
    if size == picture_size(processor):
        return values
    crop, resized = _sizes(processor)
    changed: dict[str, Any] = {}
    if crop:
        ratios = [new / old for new, old in zip(size, (crop["height"], crop["width"]), strict=True)]
        changed["crop_size"] = {"height": size[0], "width": size[1]}
    elif resized.keys() == {"height", "width"}:
        ratios = [new / old for new, old in zip(size, (resized["height"], resized["width"]), strict=True)]
    elif resized:
        raise CheckpointError(
            f"The image processor of {str(folder)!r} resizes pictures by {resized}, which gives none of {pixels(size)}; set size to a "
            f"height and a width in its {file}."
        )
    if resized.keys() == {"height", "width"}:
        sides = zip((resized["height"], resized["width"]), ratios, strict=True)
        changed["size"] = dict(zip(("height", "width"), (round(side * ratio) for side, ratio in sides), strict=True))
    elif resized:  # the crop lies in the resized picture, whichever side is the shorter
        changed["size"] = {"shortest_edge": round(resized["shortest_edge"] * max(ratios))}
    return file_with(folder, processor, changed, file)


def file_with(folder: Path, processor: Any, fields: Mapping[str, Any], file: str = FILE) -> dict[str, Any]:
    """The values of the file of an image processor or a feature extractor with other values of these fields, and what they were."""
    values, changed = _image_values(folder, file) or {}, dict(fields)
    if not any(values.get(name) for name in TYPE_FIELDS):  # transformers looks it up by the model type, which is another one now
        field = TYPE_FIELDS["ImageProcessor" not in type(processor).__name__]
        changed[field] = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    before = {name: values.get(name) for name in changed}
    return {**values, **changed, FIELD_BEFORE: before} if changed else values


def files_before(folder: Path) -> dict[str, dict[str, Any]]:
    """The files of a folder's processors, by name, as they were before :func:`file_of_size`; of those that were changed."""
    return {name: values for file in (FILE, VIDEO_FILE) for name, values in _file_before(folder, file).items()}


def _file_before(folder: Path, file: str) -> dict[str, dict[str, Any]]:
    """A processor's file as it was before :func:`file_of_size`; empty where there is none or nothing was changed."""
    values = _image_values(folder, file) or {}
    before = values.pop(FIELD_BEFORE, None)
    if not isinstance(before, Mapping):
        return {}
    restored = {**values, **before}
    return image_files(folder, {name: value for name, value in restored.items() if value is not None or name not in before}, file)


def _sizes(processor: Any) -> tuple[dict[str, int], dict[str, int]]:
    """What a processor crops pictures to, and what it resizes them to; empty where it does not."""
    crop = _as_sides(processor, "crop_size") if getattr(processor, "do_center_crop", None) else {}
    return crop, _as_sides(processor, "size") if getattr(processor, "do_resize", None) else {}


def _as_sides(processor: Any, name: str) -> dict[str, int]:
    """The size under ``name``, by its sides."""
    size = getattr(processor, name, None)
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {} if size is None else {side: number for side, number in dict(size).items() if number is not None}
