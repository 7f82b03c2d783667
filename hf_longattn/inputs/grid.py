"""Images, whose patches lie on a grid.

A conversion changes no tensor. The model interpolates or tiles its position table when it runs. So the stored table stays as trained,
and at the old size the result has the source's positions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..configuration import LongAttentionConfig
from ..conversion.check import Comparison
from ..conversion.check_sizes import STATES, check_sizes
from ..conversion.plan import ConversionPlan, plan_sized
from ..conversion.plan_positions import PositionWarning, layers_in_words
from ..data.images import IMAGE_FILES, read_image_file
from ..errors import CheckpointError, InputError, OptionError, in_a_line, nearest
from ..evaluation.flops import ModelShape, layer_mechanisms
from ..mechanisms import Mechanism
from ..mechanisms.common.choice_text import write_choice
from ..mechanisms.common.registry import prototype
from ..mechanisms.window2d import GLOBAL
from ..modeling.family.grid_config import INTERPOLATE, TILE, check_mechanism_for_grid
from ..modeling.family.grid_rule import IMAGE_SIZE, INTERPOLATE_ARGUMENT, PIXELS, image_size
from ..reports import FAILED, PASSED, SKIPPED, Check, Difference, equality
from .kind import Example, InputKind
from .processors import IMAGE_PROCESSOR, ProcessorFile, UserFiles, load_processor, pixels, processed_size, values_of_size
from .running import run_model
from .sizes import AUTO, PARTS, SEARCH, SIZE, InputSize, InputSizes, Words, sizes_between

COLOURS = 3
CROPS = "patch features equal to the source's on each crop of the old size"
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
PHOTO_SIZE = (427, 640)
"""Height and width of scikit-learn's photographs."""
TRAINED_BY = {"ForImageClassification": ("classify", "--images", "--data", "YOUR_IMAGES")}
"""Ending of a class's name -> arguments of ``longattn train`` for its models."""
IMAGE_READER = ("processor", "AutoImageProcessor")
PILLOW = "from PIL import Image"


def image_lines(height: int, width: int) -> str:
    """Lines that make an image of this many pixels, with the folder's image processor."""
    return (
        f'image = Image.new("RGB", ({width}, {height}), "white")  # or yours: Image.open("photo.jpg").convert("RGB")\n'
        'inputs = processor(image, return_tensors="pt")'
    )


def read_size(size: Any) -> tuple[int, ...]:
    """A size in pixels, (height, width). From a number, text such as "768x1024", or a sequence of numbers.

    Raises:
        InputError: ``size`` is none of these, or has more than two numbers.
    """
    sizes = size
    if isinstance(size, str) and re.fullmatch(r"\d{1,6}([x×]\d{1,6})?", text := size.strip().lower()):
        numbers = [int(number) for number in re.split("[x×]", text)]
        sizes = numbers if len(numbers) > 1 else numbers[0]
    if isinstance(sizes, str) or len(sizes := image_size(sizes)) != 2:
        raise InputError(f"An image size is {size!r:.40}, but must be pixels, or height and width: 1024, or 768x1024.")
    return sizes


@cache
def photographs() -> tuple[Tensor, ...]:
    """scikit-learn's photographs, ``(3, height, width)`` uint8. Empty without scikit-learn or Pillow."""
    try:
        from sklearn.datasets import load_sample_image

        return tuple(torch.tensor(load_sample_image(name)).permute(2, 0, 1) for name in PHOTOGRAPHS)
    except ImportError:
        return ()


class Images(UserFiles):
    """A user's images, or scikit-learn's photographs, as inputs of a model."""

    processor_kind, reads = IMAGE_PROCESSOR, "images"
    files_in = staticmethod(IMAGE_FILES.files)
    built_in = "scikit-learn's photographs"
    wanted = "; give an image or a folder of images as a Path instead of a text."

    def at(self, size: InputSize) -> dict[str, Any]:
        """The arguments of ``forward`` for one random image."""
        return dict(self.rule.arguments(self.config, self.rule.seeded(self.config, size.value)))

    def processed(self) -> Tensor:
        """The input that the processor makes of the first image, at the processor's own size."""
        return torch.as_tensor(self.required(images=read_image_file(self.files[0]), return_tensors="pt")[PIXELS])

    @cached_property
    def images(self) -> list[Any]:
        """The user's images; without any, scikit-learn's photographs."""
        if self.files:
            return [read_image_file(file) for file in self.files]
        if not photographs():
            raise OptionError("There are no images to choose by, since scikit-learn is not installed; give --search-images FOLDER.")
        return [photograph.permute(1, 2, 0).numpy() for photograph in photographs()[: self.count]]

    def pieces(self, size: InputSize) -> list[dict[str, Any]]:
        """The arguments of ``forward`` for each image, processed at ``size``.

        Raises:
            InputError: the processor makes images of another size.
        """
        value = size.value
        processor = type(self.required).from_dict(values_of_size(self.required, value))
        values = [torch.as_tensor(processor(images=image, return_tensors="pt")[PIXELS]) for image in self.images]
        if wrong := next((tuple(each.shape[-2:]) for each in values if tuple(each.shape[-2:]) != value), None):
            raise InputError(
                f"The image processor in {str(self.folder)!r} makes images of {pixels(wrong)} where {pixels(value)} are needed; set "
                "do_resize and size in its file."
            )
        return [self.rule.arguments(self.config, each) for each in values]

    def describe(self) -> str:
        """Description of the inputs for a report."""
        return "seeded images"


class GridKind(InputKind):
    """Images, whose patches lie on a grid."""

    words = Words(
        noun="image",
        nouns="images",
        units="pixels",
        size="size",
        material="images",
        settings=("image_size", "search_images"),
        instead={SIZE: "give the size as --image-size 1024", SEARCH: "give images as --search-images FOLDER", PARTS: "give --mechanism"},
        longer="Other multiples of the patch run as well, but were not verified.",
        how_to_diagnose="give it an image: longattn inspect MODEL photo.jpg.",
        drawn=True,
        check=check_mechanism_for_grid,
    )

    @property
    def any_size(self) -> bool:
        return self.rule.shapes is not None

    def sizes(self, config: Any) -> InputSizes:
        return sizes_between(self.words, partial(self._size, config), *self.rule.sizes(config))

    def _size(self, config: Any, size: Any) -> InputSize:
        value = read_size(size)
        grid = self.rule.of_size(config, value)
        return InputSize(
            value=value,
            tokens=grid.length,
            words=pixels(value),
            typed="x".join(map(str, value if len(set(value)) > 1 else value[:1])),
            heading="×".join(map(str, value)),
            name=IMAGE_SIZE,
            cost_name="size",
            grid=grid,
        )

    def plan(self, source: Any, architecture: Any, request: Any) -> ConversionPlan:
        config = architecture.source_config
        old, read = self.rule.sizes(config)
        new = read if request.image_size is None else read_size(request.image_size)
        sizes = sizes_between(self.words, partial(self._size, config), old, new)
        if any(after < before for after, before in zip(sizes.new.value, old, strict=True)):
            raise InputError(
                f"The source reads images of {sizes.old.words} and conversion only enlarges them: {sizes.new.words} are too few, give at "
                f"least --image-size {'x'.join(map(str, old))}."
            )
        if sizes.grows and len(set(sizes.old.grid.sizes)) > 1:
            raise OptionError(
                f"The position table of {architecture.source_class} has {' × '.join(map(str, sizes.old.grid.sizes))} positions, and "
                "transformers resizes square ones only; leave --image-size out."
            )
        attention = grid_attention(architecture, request, sizes)
        shape = ModelShape.of(config, causal=False)
        layers = sizes.new.bound(layer_mechanisms(attention, shape, sizes.new.tokens))
        positions, known = request.positions, (AUTO, TILE, INTERPOLATE)
        if positions not in known:
            raise OptionError(
                f"{positions!r} does not apply to the positions of images; expected one of {', '.join(known)}.{nearest(positions, known)}"
            )
        if positions == AUTO:
            positions = TILE if sizes.grows and all(map(sizes.fits_tiles, layers)) else INTERPOLATE
        files = {}
        if (place := ProcessorFile.find(source.folder, IMAGE_PROCESSOR)) is not None:
            processor = load_processor(source.folder, IMAGE_PROCESSOR)
            processed = processed_size(processor)
            if processed is not None and processed != sizes.old.value and self.rule.interpolates:
                raise CheckpointError(
                    f"The image processor of {source.name!r} makes images of {pixels(processed)}, but its config.json says "
                    f"{IMAGE_SIZE}={config.image_size}; correct the size in {place.file}, or {IMAGE_SIZE}."
                )
            files = place.with_values(values_of_size(processor, sizes.new.value)) if sizes.grows else {}
        return plan_sized(
            source,
            architecture,
            request,
            sizes,
            attention,
            positions=positions,
            fields={"long_image_size": list(sizes.new.value)} if sizes.grows else {},
            warnings=grid_warnings(positions, attention, layers, sizes),
            files=files,
            trained_by=TRAINED_BY,
        )

    def inputs(self, config: Any, folder: Path, text: tuple[str, str] | None = None, files: Path | None = None, **settings: Any) -> Images:
        return Images(self.rule, config, folder, files, **settings)

    def processor(self, plan: Any, folder: Path, inputs: Images) -> list[Check]:
        """Check that the written image processor makes images of the new size."""
        size, place, name = plan.inputs.new, ProcessorFile.find(folder, IMAGE_PROCESSOR), "image processor"
        if place is None:
            return [Check(name, SKIPPED, f"the source has no {name}, so make inputs of {size.words} as it was trained")]
        sizes: dict[str, tuple[int, ...]] = {}
        try:
            processor: Any = load_processor(folder, IMAGE_PROCESSOR)
            fixed = processed_size(processor)
            for sides in [PHOTO_SIZE] * (fixed is not None) + [size.value]:  # the first has to be resized
                values = processor(torch.zeros(*sides, COLOURS, dtype=torch.uint8).numpy(), return_tensors="pt")[PIXELS]
                sizes[f"images of {pixels(sides)}"] = tuple(torch.as_tensor(values).shape[-2:])
        except (CheckpointError, ValueError, TypeError, KeyError, RuntimeError) as error:
            return [Check(name, FAILED, f"the {name} of the result does not run: {in_a_line(error).rstrip('.')}")]
        must_fit = self.rule.interpolates or plan.inputs.grows
        if wrong := next((after for after in sizes.values() if must_fit and after != size.value), None):
            return [
                Check(name, FAILED, f"the {name} makes inputs of {pixels(wrong)} instead of {size.words}; correct the size in {place.file}")
            ]
        processed = next(iter(sizes.values()))
        values = {IMAGE_SIZE: None if fixed is None else list(processed)}
        return [Check(name, PASSED, f"{' and '.join(sizes)} become inputs of {pixels(processed)}", values)]

    def check(self, comparison: Comparison) -> list[Check]:
        """Compare at both sizes. Where positions are tiled, windows of the old size are also compared with the source's crops."""
        resizing = {INTERPOLATE_ARGUMENT: True} if self.rule.interpolates else {}
        how = f"{INTERPOLATE_ARGUMENT}=True" if resizing else "its resized position table"
        checks, states, new = check_sizes(comparison, True, resizing, how)
        plan, at_new = comparison.plan, comparison.inputs.at(new)
        crops = check_crops(plan, comparison.base, at_new, states, new) if plan.inputs.grows else []
        return [*checks, *crops]

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        height, width = self.rule.sizes(self.config_of(config))[1]
        task = "image-feature-extraction"
        if ProcessorFile.find(folder, IMAGE_PROCESSOR) is not None:
            return Example(task, IMAGE_READER, image_lines(height, width), (PILLOW,))
        line = f'inputs = {{"pixel_values": torch.rand(1, 3, {height}, {width}) * 2 - 1}}  # images, normalised as the model was trained'
        return Example(task, None, line)


def grid_attention(architecture: Any, request: Any, sizes: InputSizes) -> LongAttentionConfig:
    """The requested attention, by default the family's default mechanism. Its windows are as large as the source's grid unless the request
    gives ``window``.

    Raises:
        OptionError, InputError: a layer's mechanism is for texts, or its options do not fit the grid.
    """
    kind: Any = architecture.family.config_class
    default, sides = kind.default_mechanism, sizes.old.grid.sizes
    if request.long_attention is not None:
        attention = request.attention()
    else:
        named = request.mechanism is not None or bool(request.layers)
        values = (request if named else replace(request, mechanism=default)).attention().to_dict()
        window = list(sides) if len(set(sides)) > 1 else sides[0]
        attention = LongAttentionConfig.from_dict(_with_window(values, default, window))
    layers = architecture.source_config.num_hidden_layers
    attention.check_layers(layers)
    for layer in range(layers):
        name, options = attention.for_layer(layer)
        check_mechanism_for_grid(name, dict(options))
        prototype(name, options).on_grid(sizes.new.grid, check=True)
    return attention


def _with_window(value: Any, name: str, window: Any) -> Any:
    """The configuration ``value``, with ``window`` wherever it chooses the mechanism ``name`` without one."""
    if isinstance(value, Mapping):
        inside = {key: _with_window(inner, name, window) for key, inner in value.items()}
        return {"window": window, **inside} if inside.get("mechanism") == name else inside
    return [_with_window(inner, name, window) for inner in value] if isinstance(value, list) else value


def grid_warnings(rule: str, attention: LongAttentionConfig, layers: Sequence[Mechanism], sizes: InputSizes) -> list[PositionWarning]:
    """One warning for each mechanism whose positions in larger images need training."""
    if not sizes.grows:
        return []
    old = " × ".join(map(str, sizes.old.grid.sizes))
    numbers: dict[str, list[int]] = {}
    for number, layer in enumerate(layers):
        windowed = layer.grid_blocks(sizes.new.grid) is not None
        if windowed if rule == INTERPOLATE else not sizes.fits_tiles(layer):
            name, options = attention.for_layer(number)
            numbers.setdefault(write_choice({"mechanism": name, **options}), []).append(number)
    warnings = []
    for name, at in numbers.items():
        where = layers_in_words(at, len(layers))
        if rule == TILE:
            problem = f"{name} in {where} sees cells of several windows of {old} cells, and tiled positions repeat every {old} cells"
            advice = "use --positions interpolate, or train the result"
        else:
            problem = (
                f"{name} in {where} has windows, in which interpolated positions lie closer than those that it was trained with (Bolya et "
                "al. 2023, Window Attention is Bugged)"
            )
            advice = f"use windows of {old} cells in every layer, whose positions are tiled, or train the result"
        warnings.append(PositionWarning(problem, advice))
    return warnings


def check_crops(plan: ConversionPlan, base: Any, inputs: Mapping[str, Any], states: Mapping[str, Tensor], new: InputSize) -> list[Check]:
    """Compare each window of the old size with the source's output for that crop, if positions are tiled and no token sees two windows."""
    old, layers = plan.inputs.old, new.bound(layer_mechanisms(plan.attention, plan.shape, new.tokens))
    prefix, window = new.grid.prefix, old.grid.sizes
    apart = all(
        layer.grid_blocks(new.grid) == window and (not prefix or vars(layer.options).get("prefix_tokens") != GLOBAL) for layer in layers
    )
    if plan.positions != TILE or not plan.kind.rule.adds_positions or not apart:
        why = (
            "positions are not a tiled table, or patches see other windows or tokens before them (--option prefix_tokens=none hides these)"
        )
        return [Check(CROPS, SKIPPED, f"does not apply: {why}")]

    def cells_only(module: Any, args: Any, output: Any) -> Any:
        return output[:, prefix:] if isinstance(output, Tensor) else (output[0][:, prefix:], *output[1:])

    hook, images = base.embeddings.register_forward_hook(cells_only), inputs[PIXELS]
    expected = run_model(base, {PIXELS: _tiles(images, old.value)})[STATES]
    hook.remove()
    cells = states[STATES][:, prefix:].unflatten(1, new.grid.sizes).movedim(-1, 1)
    measured = _tiles(cells, window).flatten(2).mT
    detail = (
        f"patch features at {new.describe()} and the source's, without tokens before its patches, on {len(expected)} crops of {old.words}: "
        "largest difference"
    )
    return [
        equality(CROPS, detail, Difference.of({"cells": expected}, {"cells": measured}), {"crops": len(expected), new.name: new.number})
    ]


def _tiles(values: Tensor, sides: Sequence[int]) -> Tensor:
    """The parts of one image ``(1, channels, height, width)`` with these sides, row by row, as a batch."""
    return values[0].unfold(1, sides[0], sides[0]).unfold(2, sides[1], sides[1]).flatten(1, 2).movedim(1, 0)
