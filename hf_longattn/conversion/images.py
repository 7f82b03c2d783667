"""Conversions of models that read images.

The stored position table does not change, because the model interpolates or tiles it when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..configuration import LongAttentionConfig
from ..data.images import read_image
from ..errors import CheckpointError, InputError, OptionError, nearest
from ..mechanisms import Mechanism
from ..mechanisms.common.capabilities import grid_blocks
from ..mechanisms.window2d import GLOBAL
from ..modeling.costs import layer_mechanisms
from ..modeling.family.definition import without_head
from ..modeling.family.grid_spec import IMAGE_SIZE, INTERPOLATE, INTERPOLATE_ARGUMENT, PIXELS, TILE, fits_tiles
from ..modeling.family.input_spec import AUTO, InputSize, InputSizes
from ..reports import FAILED, PASSED, SKIPPED, Check, Difference, equality
from .architecture import Architecture
from .check import Comparison
from .modality import Modality
from .plan import ConversionPlan, PositionWarning, completed, warnings_of_layers
from .running import run_model
from .settings import ConversionConfig
from .sized import (
    IMAGE_PROCESSOR,
    STATES,
    UserFiles,
    affordable_size,
    changed_file,
    check_sizes,
    hidden_states,
    load_processor,
    plan_sized,
    sized_layers,
    without_processor,
)
from .source import Source

CROPS = "patch features equal to the source's on each crop of the old size"
"""Name of the check :func:`check_crops`."""
PHOTO_SIZE = (427, 640)
"""Height and width, in pixels, of the image for checking a written processor."""
TASKS = {"ForImageClassification": ("classify", "--data", "YOUR_IMAGES")}
"""Ending of a class's name -> the words after ``longattn train`` that train it."""


def processed_sides(processor: Any) -> list[dict[str, int]]:
    """The size of a processor's crops, and the size to which it resizes images.

    Each is a mapping such as ``{"height": 224, "width": 224}`` or ``{"shortest_edge": 256}``. It is empty if the
    processor does not crop, or does not resize.
    """
    sizes = []
    for done, name in (("do_center_crop", "crop_size"), ("do_resize", "size")):
        size: dict[str, int] = {}
        if getattr(processor, done, None):
            size = dict(getattr(processor, name, None) or {})
        sizes.append({side: number for side, number in size.items() if number is not None})
    return sizes


def processed_size(processor: Any) -> tuple[int, int] | None:
    """Height and width of a processor's outputs; ``None`` if they depend on the image."""
    crop, size = processed_sides(processor)
    fixed = crop or size
    if fixed.keys() != {"height", "width"}:
        return None
    return fixed["height"], fixed["width"]


def size_fields(processor: Any, size: tuple[int, ...]) -> dict[str, Any]:
    """The fields of an image processor for outputs of ``size``, (height, width).

    Empty if the size of the outputs depends on the image.
    """
    crop, resized = processed_sides(processor)
    old = processed_size(processor)
    if old is None:
        return {}
    fields: dict[str, Any] = {}
    if crop:
        fields["crop_size"] = dict(zip(("height", "width"), size, strict=True))
    if resized:
        ratios = {side: new / before for side, new, before in zip(("height", "width"), size, old, strict=True)}
        # a size such as shortest_edge grows by the larger ratio, so that the crop fits into every resized image
        largest = max(ratios.values())
        fields["size"] = {side: round(number * ratios.get(side, largest)) for side, number in resized.items()}
    return fields


class Images(UserFiles):
    """The images of a user as inputs of a model, and random images for comparing two models."""

    part, file_type, noun, built_in = IMAGE_PROCESSOR, "image", "images", "seeded images"

    def at(self, size: InputSize) -> dict[str, Any]:
        """The arguments of ``forward`` for one random image."""
        return {PIXELS: self.spec.seeded(self.config, size.value)}

    def pieces(self, size: InputSize) -> list[dict[str, Any]]:
        """The arguments of ``forward`` for each image of the user, processed for ``size``.

        Raises:
            InputError: the processor makes images of another size.
        """
        fields = {**self.required.to_dict(), **size_fields(self.required, size.value)}
        processor = type(self.required).from_dict(fields)
        pieces = []
        for file in self.needed():
            image = read_image(file, otherwise="give another file")
            values = torch.as_tensor(processor(images=image, return_tensors="pt")[PIXELS])
            sides = tuple(values.shape[-2:])
            if sides != size.value:
                raise InputError(
                    f"The image processor in {str(self.folder)!r} makes images of {self.spec.describe(sides)} where "
                    f"{size.words} are needed; set do_resize and size in its file."
                )
            pieces.append({PIXELS: values})
        return pieces


def plan_images(source: Source, architecture: Architecture, request: ConversionConfig) -> ConversionPlan:
    """Plan the conversion of a model that reads images to a larger size: windows, positions, and processor."""
    family, config = architecture.family, architecture.source_config
    spec = family.spec
    old, new = spec.pixels(config)
    if request.image_size is not None:
        new = request.image_size
    sizes = spec.between(config, old, new, reads_new=True)
    if any(after < before for after, before in zip(sizes.new.value, old, strict=True)):
        raise InputError(
            f"The source reads images of {sizes.old.words} and conversion only enlarges them: {sizes.new.words} "
            "are too few, give at "
            f"least --image-size {'x'.join(map(str, old))}."
        )
    if sizes.grows and len(set(sizes.old.grid.sizes)) > 1:
        raise OptionError(
            f"The position table of {architecture.source_class} has {' × '.join(map(str, sizes.old.grid.sizes))} "
            "positions, and transformers resizes square ones only; leave --image-size out."
        )

    # by default, windows are as large as the source's grid
    if request.long_attention is not None:
        attention = request.attention()
    else:
        config_class: Any = family.config_class
        default, sides = config_class.default_mechanism, sizes.old.grid.sizes
        if request.mechanism is None and not request.layers:
            request = replace(request, mechanism=default)
        window = list(sides) if len(set(sides)) > 1 else sides[0]
        attention = completed(
            request.attention(),
            {"window": window},
            lambda choice: choice.get("mechanism") == default and "window" not in choice,
        )
    layers = sized_layers(architecture, attention, sizes)
    strategy, warnings = image_positions(request.positions, attention, layers, sizes)

    processor = load_processor(source.folder, IMAGE_PROCESSOR)
    files = {}
    if processor is not None:
        processed = processed_size(processor)
        if processed not in (None, sizes.old.value) and spec.interpolates:
            stated = f"{IMAGE_SIZE}={source.config.get(IMAGE_SIZE)}"
            raise CheckpointError(
                f"The image processor of {source.name!r} makes images of {spec.describe(processed)}, but its "
                f"config.json says {stated}; correct the size in the processor's file, or {IMAGE_SIZE}."
            )
        changes = size_fields(processor, sizes.new.value)
        if sizes.grows and changes:
            files = changed_file(source.folder, IMAGE_PROCESSOR, processor, changes)
    return plan_sized(source, architecture, sizes, attention, strategy, warnings, files, TASKS)


def image_positions(
    strategy: str, attention: LongAttentionConfig, layers: Sequence[Mechanism], sizes: InputSizes
) -> tuple[str, list[PositionWarning]]:
    """Choose how the position table is extended: "tile" or "interpolate". Returns warnings, too.

    Args:
        strategy: one of both, or "auto", which tiles if every layer's windows have the old size.
        layers: the mechanism of each layer.
    """
    known = (AUTO, TILE, INTERPOLATE)
    if strategy not in known:
        raise OptionError(
            f"{strategy!r} does not apply to the positions of images; expected one of "
            f"{', '.join(known)}.{nearest(strategy, known)}"
        )
    if strategy == AUTO:
        tiles = sizes.grows and all(fits_tiles(sizes, layer) for layer in layers)
        strategy = TILE if tiles else INTERPOLATE
    if not sizes.grows:
        return strategy, []
    old = " × ".join(map(str, sizes.old.grid.sizes))
    if strategy == TILE:
        problem = f"sees cells of several windows of {old} cells, and tiled positions repeat every {old} cells"
        advice = "use --positions interpolate, or train the result"
        has_problem = [not fits_tiles(sizes, layer) for layer in layers]
    else:
        problem = (
            "has windows, in which interpolated positions lie closer than those that it was trained with (Bolya "
            "et al. 2023, Window Attention is Bugged)"
        )
        advice = f"use windows of {old} cells in every layer, whose positions are tiled, or train the result"
        has_problem = [grid_blocks(layer, sizes.new.grid) is not None for layer in layers]
    return strategy, warnings_of_layers(attention, [problem if affected else "" for affected in has_problem], advice)


def check_image_processor(plan: ConversionPlan, folder: Path, inputs: Images) -> list[Check]:
    """Check that the written image processor makes images of the new size."""
    if inputs.processor is None:
        return [without_processor(IMAGE_PROCESSOR, plan)]
    spec, size = inputs.spec, plan.inputs.new
    processor: Any = load_processor(folder, IMAGE_PROCESSOR)
    # a processor with a fixed size has to resize a photo; another processor gets an image that has the new size
    sides = size.value if processed_size(processor) is None else PHOTO_SIZE
    values = processor(torch.zeros(*sides, 3, dtype=torch.uint8).numpy(), return_tensors="pt")[PIXELS]
    resized = tuple(torch.as_tensor(values).shape[-2:])
    status, detail = PASSED, f"images of {spec.describe(sides)} become inputs of {spec.describe(resized)}"
    if resized != size.value and (spec.interpolates or plan.inputs.grows):
        status = FAILED
        detail += f" instead of {size.words}; correct the size in its file"
    return [Check("image processor", status, detail, {IMAGE_SIZE: list(resized)})]


def check_images(comparison: Comparison) -> list[Check]:
    """Compare source and result at the old and the new size. A larger size is also compared crop by crop."""
    if comparison.inputs.spec.interpolates:
        checks = check_sizes(comparison, {INTERPOLATE_ARGUMENT: True}, f"{INTERPOLATE_ARGUMENT}=True")
    else:
        checks = check_sizes(comparison, {}, "its resized position table")
    if comparison.plan.inputs.grows:
        checks.append(check_crops(comparison))
    return checks


def check_crops(comparison: Comparison) -> Check:
    """Compare each window of the result, at the new size, with the source's output for that crop of the image.

    They are equal only if windows have the old size, positions are tiled, and patches see nothing outside their
    window. Otherwise, the check is skipped.
    """
    plan, base = comparison.plan, without_head(comparison.source)
    old, new = plan.inputs.old, affordable_size(plan)
    prefix, window = new.grid.prefix, old.grid.sizes  # number of tokens before the patches; sides in patches
    layers = new.bound(layer_mechanisms(plan.attention, plan.shape, new.tokens))
    has_old_windows = all(grid_blocks(layer, new.grid) == window for layer in layers)
    sees_prefix = prefix > 0 and any(vars(layer.options).get("prefix_tokens") == GLOBAL for layer in layers)
    separate = has_old_windows and not sees_prefix
    if plan.positions != TILE or not comparison.inputs.spec.adds_positions or not separate:
        detail = "does not apply: positions are not a tiled table, or patches see other windows or tokens before them"
        return Check(CROPS, SKIPPED, f"{detail} (--option prefix_tokens=none hides these)")

    def tiles(values: Tensor, sides: Sequence[int]) -> Tensor:
        """Cut an image ``(1, channels, height, width)`` into tiles ``(tiles, channels, *sides)``, row by row."""
        return values[0].unfold(1, sides[0], sides[0]).unfold(2, sides[1], sides[1]).flatten(1, 2).movedim(1, 0)

    arguments = comparison.inputs.at(new)

    def without_prefix(module: Any, arguments: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output[:, prefix:]
        return (output[0][:, prefix:], *output[1:])

    # the source, on the crops, without the tokens before their patches: (crops, patches of a crop, hidden size)
    hook = base.embeddings.register_forward_hook(without_prefix)
    expected = run_model(base, {PIXELS: tiles(arguments[PIXELS], old.value)})[STATES]
    hook.remove()
    # the result, on the whole image, cut into the same shape
    patches = hidden_states(comparison.result, arguments)[STATES][:, prefix:]
    patches = patches.unflatten(1, new.grid.sizes).movedim(-1, 1)
    by_crop = tiles(patches, window).flatten(2).mT
    difference = Difference.of({"cells": expected}, {"cells": by_crop})
    what = (
        f"patch features at {new} and the source's, without tokens before its patches, on {len(expected)} crops of "
        f"{old.words}"
    )
    return equality(CROPS, f"{what}: largest difference", difference, {"crops": len(expected), **new.values})


IMAGES = Modality(
    ("image_size",),
    plan_images,
    lambda family, config, folder, text, recording: Images(family.spec, config, folder),
    check_image_processor,
    check_images,
    Images,
)
