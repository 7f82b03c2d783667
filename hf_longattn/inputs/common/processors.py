"""The image processor or the feature extractor of a checkpoint: the size of the inputs that it makes, and its file with another one.

Only the size is changed in the file, in the form that it has there (height and width, or the shortest edge and a crop), and what it was is
kept in it for the way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...data.videos import frame_processor
from ...errors import CheckpointError
from ...loading import load_part, loading_errors
from ...modeling.family.grid_rule import GridRule
from ...processor_files import FEATURE_EXTRACTOR, FIELD_BEFORE, FILE, IMAGE_PROCESSOR, KINDS, VIDEO_PROCESSOR, ProcessorFile, ProcessorKind

TYPE_FIELDS = ("image_processor_type", "feature_extractor_type", "video_processor_type")


def load_processor(folder: Path, kind: ProcessorKind) -> Any | None:
    """The processor of a kind in a checkpoint folder; ``None`` if it has none. :func:`frame_processor` is used for videos.

    Raises:
        CheckpointError: there is one, and transformers cannot load it.
    """
    if (place := ProcessorFile.find(folder, kind)) is None:
        return None
    if kind is VIDEO_PROCESSOR:
        with loading_errors(folder, kind.noun):
            return frame_processor(place.values)
    import transformers

    return load_part(getattr(transformers, kind.auto_class), folder, kind.noun, local_files_only=True)


def place_on_grid(rule: GridRule, folder: Path) -> ProcessorFile | None:
    """The place of the processor of a model on a grid; of videos, the video processor's if any."""
    if not rule.reads_photographs:
        return ProcessorFile.find(folder, FEATURE_EXTRACTOR)
    of_videos = ProcessorFile.find(folder, VIDEO_PROCESSOR) if rule.noun == "video" else None
    return of_videos or ProcessorFile.find(folder, IMAGE_PROCESSOR)


def processor_of(rule: GridRule, folder: Path) -> Any | None:
    """The processor of a model on a grid, by :func:`load_processor`; ``None`` if its folder has none."""
    place = place_on_grid(rule, folder)
    return None if place is None else load_processor(folder, place.kind)


def required_processor(processor: Any | None, name: str, inputs: str = "pictures") -> Any:
    """The image processor or the feature extractor of the model called ``name``, which reads these ``inputs``.

    Raises:
        CheckpointError: it has none.
    """
    if processor is None:
        raise CheckpointError(f"{name!r} has no {FILE}, which says how it reads {inputs}; copy that of its original there.")
    return processor


def picture_size(processor: Any) -> tuple[int, int] | None:
    """Height and width of the pictures that a processor makes; ``None`` where that depends on the picture."""
    crop, size = _sizes(processor)
    fixed = crop or size
    return (fixed["height"], fixed["width"]) if fixed.keys() == {"height", "width"} else None


def values_of_size(place: ProcessorFile, processor: Any, size: tuple[int, ...]) -> dict[str, Any]:
    """The values of an image processor for pictures of ``size``, height and width.

    Raises:
        CheckpointError: it resizes pictures in a way that has no such size.
    """
    if size == picture_size(processor):
        return place.values
    crop, resized = _sizes(processor)
    changed: dict[str, Any] = {}
    if crop:
        ratios = [new / old for new, old in zip(size, (crop["height"], crop["width"]), strict=True)]
        changed["crop_size"] = {"height": size[0], "width": size[1]}
    elif resized.keys() == {"height", "width"}:
        ratios = [new / old for new, old in zip(size, (resized["height"], resized["width"]), strict=True)]
    elif resized:
        raise CheckpointError(
            f"The image processor of {str(place.folder)!r} resizes pictures by {resized}, which gives none of {pixels(size)}; set size to "
            f"a height and a width in its {place.file}."
        )
    if resized.keys() == {"height", "width"}:
        sides = zip((resized["height"], resized["width"]), ratios, strict=True)
        changed["size"] = dict(zip(("height", "width"), (round(side * ratio) for side, ratio in sides), strict=True))
    elif resized:  # the crop lies in the resized picture, whichever side is the shorter
        changed["size"] = {"shortest_edge": round(resized["shortest_edge"] * max(ratios))}
    return values_with(place, processor, changed)


def values_with(place: ProcessorFile, processor: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a processor with other ``fields``, and their former values in :data:`FIELD_BEFORE`."""
    values, changed = place.values, dict(fields)
    if not any(values.get(name) for name in TYPE_FIELDS):  # transformers looks it up by the model type, which is another one now
        field = TYPE_FIELDS["ImageProcessor" not in type(processor).__name__]
        changed[field] = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    before = {name: values.get(name) for name in changed}
    return {**values, **changed, FIELD_BEFORE: before} if changed else values


def files_before(folder: Path) -> dict[str, dict[str, Any]]:
    """The contents of a folder's processor files before :func:`values_with`, by name; unchanged files are left out."""
    files: dict[str, dict[str, Any]] = {}
    for place in filter(None, (ProcessorFile.find(folder, kind) for kind in KINDS)):
        values = place.values
        before = values.pop(FIELD_BEFORE, None)
        if isinstance(before, Mapping):
            restored = {**values, **before}
            files |= place.with_values({name: value for name, value in restored.items() if value is not None or name not in before})
    return files


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


def pixels(size: tuple[int, ...]) -> str:
    """For example "768 × 1024 pixels"."""
    return f"{' × '.join(map(str, size))} pixels"
