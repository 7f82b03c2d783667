"""Conversions of models that read images. The model interpolates or tiles its position table when it runs, so the
stored one stays."""

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
PHOTO_SIZE = (427, 640)
"""Height and width of the image on which a written processor is run."""
TASKS = {"ForImageClassification": ("classify", "--data", "YOUR_IMAGES")}
"""Ending of a class's name -> the words after ``longattn train`` for training it."""


def processed_sides(processor: Any) -> list[dict[str, int]]:
    """The crop size and the size after resizing, each by its sides. Empty if the processor does not crop or resize."""
    steps = (("do_center_crop", "crop_size"), ("do_resize", "size"))
    sizes = [getattr(processor, name, None) if getattr(processor, done, None) else None for done, name in steps]
    return [{side: number for side, number in dict(size or {}).items() if number is not None} for size in sizes]


def processed_size(processor: Any) -> tuple[int, int] | None:
    """(height, width) of a processor's outputs; ``None`` if they depend on the image."""
    crop, size = processed_sides(processor)
    fixed = crop or size
    if fixed.keys() != {"height", "width"}:
        return None
    return fixed["height"], fixed["width"]


def size_fields(processor: Any, size: tuple[int, ...]) -> dict[str, Any]:
    """An image processor's fields for outputs of ``size`` (height, width). Empty if outputs depend on the image."""
    (crop, resized), old = processed_sides(processor), processed_size(processor)
    if old is None:
        return {}
    ratios = {side: new / before for side, new, before in zip(("height", "width"), size, old, strict=True)}
    # the crop fits into a resized image, whichever side is shorter
    larger = {side: round(number * ratios.get(side, max(ratios.values()))) for side, number in resized.items()}
    fields = {"crop_size": dict(zip(ratios, size, strict=True)) if crop else {}, "size": larger}
    return {name: sides for name, sides in fields.items() if sides}


class Images(UserFiles):
    """A user's images as inputs of a model; random ones for comparing models."""

    part, file_type, noun, built_in = IMAGE_PROCESSOR, "image", "images", "seeded images"

    def at(self, size: InputSize) -> dict[str, Any]:
        """The arguments of ``forward`` for one random image."""
        return {PIXELS: self.spec.seeded(self.config, size.value)}

    def pieces(self, size: InputSize) -> list[dict[str, Any]]:
        """The arguments of ``forward`` for each image, processed at ``size``. Raises an error if the processor outputs
        another size."""
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

    processor, files = load_processor(source.folder, IMAGE_PROCESSOR), {}
    if processor is not None:
        processed = processed_size(processor)
        if processed not in (None, sizes.old.value) and spec.interpolates:
            raise CheckpointError(
                f"The image processor of {source.name!r} makes images of {spec.describe(processed)}, but its "
                "config.json says "
                f"{IMAGE_SIZE}={source.config.get(IMAGE_SIZE)}; correct the size in the processor's file, or "
                f"{IMAGE_SIZE}."
            )
        changes = size_fields(processor, sizes.new.value)
        if sizes.grows and changes:
            files = changed_file(source.folder, IMAGE_PROCESSOR, processor, changes)
    return plan_sized(source, architecture, sizes, attention, strategy, warnings, files, TASKS)


def image_positions(
    strategy: str, attention: LongAttentionConfig, layers: Sequence[Mechanism], sizes: InputSizes
) -> tuple[str, list[PositionWarning]]:
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
        affected = [not fits_tiles(sizes, layer) for layer in layers]
    else:
        problem = (
            "has windows, in which interpolated positions lie closer than those that it was trained with (Bolya "
            "et al. 2023, Window Attention is Bugged)"
        )
        advice = f"use windows of {old} cells in every layer, whose positions are tiled, or train the result"
        affected = [grid_blocks(layer, sizes.new.grid) is not None for layer in layers]
    return strategy, warnings_of_layers(attention, [problem if changed else "" for changed in affected], advice)


def check_image_processor(plan: ConversionPlan, folder: Path, inputs: Images) -> list[Check]:
    """Check that the written image processor outputs the new size."""
    if inputs.processor is None:
        return [without_processor(IMAGE_PROCESSOR, plan)]
    spec, size = inputs.spec, plan.inputs.new
    processor: Any = load_processor(folder, IMAGE_PROCESSOR)
    sides = size.value if processed_size(processor) is None else PHOTO_SIZE  # the processor has to resize a photo
    values = processor(torch.zeros(*sides, 3, dtype=torch.uint8).numpy(), return_tensors="pt")[PIXELS]
    resized = tuple(torch.as_tensor(values).shape[-2:])
    status, detail = PASSED, f"images of {spec.describe(sides)} become inputs of {spec.describe(resized)}"
    if resized != size.value and (spec.interpolates or plan.inputs.grows):
        status = FAILED
        detail += f" instead of {size.words}; correct the size in its file"
    return [Check("image processor", status, detail, {IMAGE_SIZE: list(resized)})]


def check_images(comparison: Comparison) -> list[Check]:
    """Compare at both sizes. A larger size is also compared by crops (:func:`check_crops`, which reports if that does
    not apply)."""
    if comparison.inputs.spec.interpolates:
        checks = check_sizes(comparison, {INTERPOLATE_ARGUMENT: True}, f"{INTERPOLATE_ARGUMENT}=True")
    else:
        checks = check_sizes(comparison, {}, "its resized position table")
    if comparison.plan.inputs.grows:
        checks.append(check_crops(comparison))
    return checks


def check_crops(comparison: Comparison) -> Check:
    """Compare each window of the old size with the source's output for that crop. Applies only if positions are tiled
    and no token sees two windows."""
    plan, base = comparison.plan, without_head(comparison.source)
    old, new = plan.inputs.old, affordable_size(plan)
    prefix, window = new.grid.prefix, old.grid.sizes
    layers = new.bound(layer_mechanisms(plan.attention, plan.shape, new.tokens))
    has_old_windows = all(grid_blocks(layer, new.grid) == window for layer in layers)
    sees_prefix = prefix > 0 and any(vars(layer.options).get("prefix_tokens") == GLOBAL for layer in layers)
    apart = has_old_windows and not sees_prefix
    if plan.positions != TILE or not comparison.inputs.spec.adds_positions or not apart:
        detail = "does not apply: positions are not a tiled table, or patches see other windows or tokens before them"
        return Check(CROPS, SKIPPED, f"{detail} (--option prefix_tokens=none hides these)")

    def tiles(values: Tensor, sides: Sequence[int]) -> Tensor:
        """Cut one image ``(1, channels, height, width)`` into parts with these sides. Returns them as a batch, row by
        row."""
        return values[0].unfold(1, sides[0], sides[0]).unfold(2, sides[1], sides[1]).flatten(1, 2).movedim(1, 0)

    arguments = comparison.inputs.at(new)
    # The source runs on crops without the tokens before their patches.
    hook = base.embeddings.register_forward_hook(
        lambda _, args, output: (
            output[:, prefix:] if isinstance(output, Tensor) else (output[0][:, prefix:], *output[1:])
        )
    )
    expected = run_model(base, {PIXELS: tiles(arguments[PIXELS], old.value)})[STATES]
    hook.remove()
    cells = hidden_states(comparison.result, arguments)[STATES][:, prefix:].unflatten(1, new.grid.sizes).movedim(-1, 1)
    by_crop = tiles(cells, window).flatten(2).mT
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
