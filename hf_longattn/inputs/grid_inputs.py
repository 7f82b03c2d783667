"""Images, whose patches lie on a grid. The model interpolates or tiles its position table when it runs, so the stored
one stays."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..configuration import LongAttentionConfig
from ..conversion.check import Comparison
from ..conversion.plan import ConversionPlan, PositionWarning, completed, warnings_of_layers
from ..data.images import read_image
from ..errors import CheckpointError, InputError, OptionError, nearest
from ..mechanisms import Mechanism
from ..mechanisms.common.capabilities import grid_blocks, on_grid
from ..mechanisms.window2d import GLOBAL
from ..modeling.costs import layer_mechanisms
from ..modeling.family.definition import without_head
from ..modeling.family.grid_spec import (
    IMAGE_SIZE,
    INTERPOLATE,
    INTERPOLATE_ARGUMENT,
    PIXELS,
    TILE,
    check_mechanism_for_grid,
    image_size,
)
from ..reports import FAILED, PASSED, SKIPPED, Check, Difference, equality
from .modality import AUTO, Example, InputSize, InputSizes
from .running import run_model
from .sized import (
    IMAGE_PROCESSOR,
    STATES,
    SizedModality,
    UserFiles,
    affordable_size,
    check_sizes,
    has_processor,
    hidden_states,
    load_processor,
)

CROPS = "patch features equal to the source's on each crop of the old size"
PHOTO_SIZE = (427, 640)
"""Height and width of the image on which a written processor is run."""


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

    def processed(self, file: Path | None = None, processor: Any = None) -> Tensor:
        """The processor's output for a file. Defaults: the model's processor at its own size, and the first file."""
        image = read_image(file or self.files[0], otherwise="give another file")
        return torch.as_tensor((processor or self.required)(images=image, return_tensors="pt")[PIXELS])

    def pieces(self, size: InputSize) -> list[dict[str, Any]]:
        """The arguments of ``forward`` for each image, processed at ``size``. Raises an error if the processor outputs
        another size."""
        processor = type(self.required).from_dict(
            {**self.required.to_dict(), **size_fields(self.required, size.value)}
        )
        values = [self.processed(file, processor) for file in self.needed()]
        if wrong := next((shape for each in values if (shape := tuple(each.shape[-2:])) != size.value), None):
            raise InputError(
                f"The image processor in {str(self.folder)!r} makes images of {self.spec.describe(wrong)} where "
                f"{size.words} are needed; "
                "set do_resize and size in its file."
            )
        return [{PIXELS: each} for each in values]


def image_example(task: str | None, height: int, width: int) -> Example:
    """Code for a model card that prepares an input with the image processor."""
    lines = (
        f'image = Image.new("RGB", ({width}, {height}), "white")  # or yours: Image.open("photo.jpg").convert("RGB")\n'
        'inputs = processor(image, return_tensors="pt")'
    )
    return Example(task, ("processor", "AutoImageProcessor"), lines, ("from PIL import Image",))


class GridModality(SizedModality):
    """Images, whose patches lie on a grid."""

    noun, nouns, units, drawn = "image", "images", "pixels", True
    settings = ("image_size",)
    files, field = Images, "long_image_size"
    trained_by = {"ForImageClassification": ("classify", "--data", "YOUR_IMAGES")}

    def size(self, config: Any, value: Any) -> InputSize:
        """From pixels, height and width, or text such as "768x1024"."""
        sides = value
        if isinstance(value, str) and (typed := re.fullmatch(r"(\d{1,6})(?:[x×](\d{1,6}))?", value.strip().lower())):
            sides = [int(side) for side in typed.groups(typed[1])]
        if isinstance(sides, str) or len(size := image_size(sides)) != 2:
            raise InputError(
                f"An image size is {value!r:.40}, but must be pixels, or height and width: 1024, or 768x1024."
            )
        grid = self.spec.of_size(config, size)
        return InputSize(size, grid.length, self.spec.describe(size), IMAGE_SIZE, grid)

    def sizes(self, config: Any) -> InputSizes:
        old, new = self.spec.sizes(config)
        return self.between(config, old, new, reads_new=True)

    def check_mechanism(self, name: str, options: dict[str, Any]) -> None:
        check_mechanism_for_grid(name, options)

    def untrained(self, sizes: InputSizes, mechanism: Mechanism, strategy: str, positions: str, causal: bool) -> str:
        tiled = positions == TILE and not fits_tiles(sizes, on_grid(mechanism, sizes.new.grid))
        return "sees cells of several repetitions of the tiled positions" if tiled else ""

    def plan(self, source: Any, architecture: Any, request: Any) -> ConversionPlan:
        config = architecture.source_config
        old, read = self.spec.sizes(config)
        sizes = self.between(config, old, read if request.image_size is None else request.image_size, reads_new=True)
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
            default, sides = self.family.config_class.default_mechanism, sizes.old.grid.sizes
            named = request.mechanism is not None or bool(request.layers)
            values = (request if named else replace(request, mechanism=default)).attention().to_dict()
            window = list(sides) if len(set(sides)) > 1 else sides[0]
            attention = completed(
                values,
                {"window": window},
                lambda choice: choice.get("mechanism") == default and "window" not in choice,
            )
        strategy, warnings = self.positions(
            request.positions, attention, self.layers(architecture, attention, sizes), sizes
        )

        processor = load_processor(source.folder, self.files.part)
        processed = None if processor is None else processed_size(processor)
        if processed is not None and processed != sizes.old.value and self.spec.interpolates:
            raise CheckpointError(
                f"The image processor of {source.name!r} makes images of {self.spec.describe(processed)}, but its "
                "config.json says "
                f"{IMAGE_SIZE}={source.config.get(IMAGE_SIZE)}; correct the size in the processor's file, or "
                f"{IMAGE_SIZE}."
            )
        changes = size_fields(processor, sizes.new.value) if processor is not None and sizes.grows else {}
        return self.planned(source, architecture, sizes, attention, strategy, warnings, processor, changes)

    def positions(
        self, strategy: str, attention: LongAttentionConfig, layers: Sequence[Mechanism], sizes: InputSizes
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
        return strategy, warnings_of_layers(attention, [problem * changed for changed in affected], advice)

    def processor(self, plan: Any, folder: Path, inputs: Images) -> list[Check]:
        """Check that the written image processor outputs the new size."""
        name, size = "image processor", plan.inputs.new
        if inputs.processor is None:
            return [
                Check(name, SKIPPED, f"the source has no {name}, so make inputs of {size.words} as in its training")
            ]
        processor: Any = Images(self.spec, plan.config, folder).processor
        sides = size.value if processed_size(processor) is None else PHOTO_SIZE  # the processor has to resize a photo
        values = processor(torch.zeros(*sides, 3, dtype=torch.uint8).numpy(), return_tensors="pt")[PIXELS]
        resized = tuple(torch.as_tensor(values).shape[-2:])
        detail = f"images of {self.spec.describe(sides)} become inputs of {self.spec.describe(resized)}"
        fits = resized == size.value or not (self.spec.interpolates or plan.inputs.grows)
        if not fits:
            detail += f" instead of {size.words}; correct the size in its file"
        return [Check(name, PASSED if fits else FAILED, detail, {IMAGE_SIZE: list(resized)})]

    def check(self, comparison: Comparison) -> list[Check]:
        """Compare at both sizes. Where positions are tiled, windows of the old size are also compared with the
        source's crops."""
        if self.spec.interpolates:
            checks = check_sizes(comparison, {INTERPOLATE_ARGUMENT: True}, f"{INTERPOLATE_ARGUMENT}=True")
        else:
            checks = check_sizes(comparison, {}, "its resized position table")
        if comparison.plan.inputs.grows:
            checks.append(check_crops(comparison))
        return checks

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        height, width = self.spec.sizes(self.config_of(config))[1]
        task = "image-feature-extraction"
        if has_processor(folder):
            return image_example(task, height, width)
        line = (
            f'inputs = {{"pixel_values": torch.rand(1, 3, {height}, {width}) * 2 - 1}}  # images, normalised as '
            "the model was trained"
        )
        return Example(task, None, line)


def fits_tiles(sizes: InputSizes, layer: Mechanism) -> bool:
    """Whether every cell sees only cells in its own tile, where the old position table is tiled over the new grid."""
    blocks = grid_blocks(layer, sizes.new.grid)
    return blocks is not None and all(
        side % block == 0 for side, block in zip(sizes.old.grid.sizes, blocks, strict=True)
    )


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
    if plan.positions != TILE or not plan.modality.spec.adds_positions or not apart:
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
