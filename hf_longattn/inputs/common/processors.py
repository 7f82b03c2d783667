"""The image processor or feature extractor of a checkpoint. The size of its outputs, and its file for another size.

In the file only the size is changed, in its present form (height and width, or the shortest edge and a crop).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...files import FILE, ProcessorFile, ProcessorKind
from ...loading import load_part

TYPE_FIELDS = ("image_processor_type", "feature_extractor_type")


def load_processor(folder: Path, kind: ProcessorKind) -> Any | None:
    """The processor of a kind in a checkpoint folder; ``None`` if there is none.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    if ProcessorFile.find(folder, kind) is None:
        return None
    import transformers

    return load_part(getattr(transformers, kind.auto_class), folder, kind.noun, local_files_only=True)


def required_processor(processor: Any | None, name: str, inputs: str = "images") -> Any:
    """``processor``, if the model has one. ``name`` and ``inputs``, a noun, are for the error message.

    Raises:
        CheckpointError: ``processor`` is ``None``.
    """
    if processor is None:
        raise CheckpointError(f"{name!r} has no {FILE}, which says how it reads {inputs}; copy that of its original there.")
    return processor


def processed_size(processor: Any) -> tuple[int, int] | None:
    """(height, width) of a processor's outputs; ``None`` if they depend on the image."""
    crop, size = _sizes(processor)
    fixed = crop or size
    return (fixed["height"], fixed["width"]) if fixed.keys() == {"height", "width"} else None


def values_of_size(place: ProcessorFile, processor: Any, size: tuple[int, ...]) -> dict[str, Any]:
    """The values of an image processor's file for outputs of ``size``, (height, width).

    Raises:
        CheckpointError: the processor resizes without a crop in a form other than height and width.
    """
    if size == processed_size(processor):
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
            f"The image processor of {str(place.folder)!r} resizes images by {resized}, which gives none of {pixels(size)}; set size to "
            f"a height and a width in its {place.file}."
        )
    if resized.keys() == {"height", "width"}:
        sides = zip((resized["height"], resized["width"]), ratios, strict=True)
        changed["size"] = dict(zip(("height", "width"), (round(side * ratio) for side, ratio in sides), strict=True))
    elif resized:  # then the crop fits into the resized image, whichever side is shorter
        changed["size"] = {"shortest_edge": round(resized["shortest_edge"] * max(ratios))}
    return values_with(place, processor, changed)


def values_with(place: ProcessorFile, processor: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a processor's file with ``fields`` changed."""
    values, changed = place.values, dict(fields)
    if not any(values.get(name) for name in TYPE_FIELDS):  # transformers finds the class by model_type, which changed
        field = TYPE_FIELDS["ImageProcessor" not in type(processor).__name__]
        changed[field] = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    return {**values, **changed}


def _sizes(processor: Any) -> tuple[dict[str, int], dict[str, int]]:
    """(crop size, size after resizing), each by its sides. Empty if the processor does not crop or resize."""
    crop = _as_sides(processor, "crop_size") if getattr(processor, "do_center_crop", None) else {}
    return crop, _as_sides(processor, "size") if getattr(processor, "do_resize", None) else {}


def _as_sides(processor: Any, name: str) -> dict[str, int]:
    """The size in the processor's attribute ``name``, by its sides. Empty if it is not set."""
    size = getattr(processor, name, None)
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {} if size is None else {side: number for side, number in dict(size).items() if number is not None}


def pixels(size: tuple[int, ...]) -> str:
    """A size as text, for example "768 × 1024 pixels"."""
    return f"{' × '.join(map(str, size))} pixels"
