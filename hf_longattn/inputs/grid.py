"""Images, whose patches lie on a grid.

A conversion changes no tensor. The model interpolates or tiles its position table when it runs. So the stored table stays as trained,
and at the old size the result has the source's positions.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..configuration import LongAttentionConfig
from ..data.images import IMAGE_FILES, read_image_file
from ..engines.common.grid import Grid
from ..errors import CheckpointError, GridError, LengthError, OptionError, PositionError, in_a_line, nearest
from ..files import IMAGE_PROCESSOR, ProcessorFile
from ..mechanisms import Mechanism, list_mechanisms
from ..mechanisms.common.choice_text import write_choice
from ..mechanisms.common.registry import prototype
from ..mechanisms.window2d import GLOBAL
from ..modeling.family.grid_config import INTERPOLATE, TILE, check_mechanism_for_grid
from ..modeling.family.grid_rule import IMAGE_SIZE, INTERPOLATE_ARGUMENT, PIXELS, GridRule, image_size
from ..reports import FAILED, PASSED, SKIPPED, Check, Difference, equality
from .common.base import (
    AUTO,
    SEARCH,
    SIZE,
    InputPlan,
    InputSize,
    InputSizes,
    Layers,
    PositionWarning,
    layers_in_words,
    register_kind,
)
from .common.examples import IMAGE_READER, PILLOW, Example, image_lines
from .common.processors import load_processor, pixels, processed_size, values_of_size
from .common.running import run_model
from .common.sized import FurtherChecks, SizedKind
from .common.user_files import UserInputs

TYPED_SIZE = re.compile(r"\d{1,6}(?:[x×]\d{1,6})*")
"""A size on the command line: 1024, or 768x1024."""


def size_text(size: tuple[int, ...]) -> str:
    """A size as typed on the command line: "1024", or "768x1024"."""
    return "x".join(map(str, size if len(set(size)) > 1 else size[:1]))


def read_size(size: Any) -> tuple[int, ...]:
    """A size in pixels, (height, width). From a number, text such as "768x1024", or a sequence of numbers.

    Raises:
        GridError: ``size`` is none of these, or has more than two numbers.
    """
    if isinstance(size, str):
        text = size.strip().lower()
        if not TYPED_SIZE.fullmatch(text):
            raise GridError(f"An image size is {size!r:.40}, but must be pixels, or height and width: 1024, or 768x1024.")
        numbers = [int(number) for number in re.split("[x×]", text)]
        size = numbers if len(numbers) > 1 else numbers[0]
    sizes = image_size(size)
    if len(sizes) != 2:
        raise GridError(f"An image size is {' × '.join(map(str, sizes))}, but must have 2 numbers at most: 1024, or 768x1024.")
    return sizes


class UserImages(UserInputs):
    """The user's images, or scikit-learn's photographs if none are given."""

    unit, processor_kind = "image", IMAGE_PROCESSOR
    files_in = staticmethod(IMAGE_FILES.files)
    reads, wanted = "images", "give an image or a folder of images as a Path instead of a text."

    def read(self, given: object) -> tuple[str, Sequence[Path]]:
        if given is not None:
            name, files = super().read(given)
            self.images: list[Any] = [read_image_file(file) for file in files]
            return name, files
        self.images = [photograph.permute(1, 2, 0).numpy() for photograph in photographs()[: self.count]]
        if not self.images:
            raise OptionError("There are no images to choose by, since scikit-learn is not installed; give --search-images FOLDER.")
        return "scikit-learn's photographs", ()

    @cached_property
    def place(self) -> Any:
        """The processor's file."""
        return ProcessorFile.find(self.folder, IMAGE_PROCESSOR)

    def checked(self, values: list[Tensor], size: tuple[int, ...]) -> list[Tensor]:
        """``values``, the processor's outputs, if all have this height and width; otherwise raise :class:`GridError`."""
        if wrong := [value.shape[-2:] for value in values if tuple(value.shape[-2:]) != size[-2:]]:
            raise GridError(
                f"The image processor in {str(self.folder)!r} makes {self.unit}s of {pixels(wrong[0])} where {pixels(size[-2:])} are "
                f"needed; set do_resize and size in its {self.place.file}."
            )
        return values

    @staticmethod
    def processed(rule: GridRule, config: Any, processor: Any, file: Path) -> Tensor:
        """The input that the processor makes of one file, at the processor's own size."""
        return torch.as_tensor(processor(images=read_image_file(file), return_tensors="pt")[PIXELS])

    def values(self, size: tuple[int, ...]) -> list[Tensor]:
        if self.rule.shapes is None:
            sized = type(self.processor).from_dict(values_of_size(self.place, self.processor, size))
            values = [torch.as_tensor(sized(images=image, return_tensors="pt")[PIXELS]) for image in self.images]
            return self.checked(values, size)
        settings = {"do_resize": False, "max_num_patches": self.rule.of_size(self.config, size).cells, "return_tensors": "pt"}
        resized = [image.resize(size[::-1], self.processor.resample) for image in self.images]
        patches = [self.processor(images=image, **settings)[PIXELS] for image in resized]
        return [self.rule.pixels_of(self.config, of_image, size) for of_image in patches]


@register_kind
class GridKind(SizedKind):
    """Images, whose patches lie on a grid."""

    noun, nouns, units = "image", "images", "pixels"
    size_noun, smaller = "size", "smaller"
    material, compared, drawn = "images", 4, True
    classified = {"ForImageClassification": ("classify", "--images", "--data", "YOUR_IMAGES")}
    settings = ("image_size", "search_images")
    diagnosed_with = "an image: longattn inspect MODEL photo.jpg"
    user_inputs = UserImages
    instead = {SIZE: "give the size as --image-size 1024", SEARCH: "give images as --search-images FOLDER"}

    @property
    def any_size(self) -> bool:
        return self.rule.shapes is not None

    def sizes(self, config: Any) -> InputSizes:
        return self.sizes_between(config, *self.rule.sizes(config))

    def size(self, config: Any, value: tuple[int, ...]) -> InputSize:
        grid = self.rule.of_size(config, value)
        return InputSize(
            value=value,
            tokens=grid.length,
            words=self.rule.describe(value),
            typed=size_text(value),
            heading="×".join(map(str, value)),
            name=IMAGE_SIZE,
            cost_name="size",
            grid=grid,
        )

    def doubled(self, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(2 * side for side in value)

    def limited(self, value: tuple[int, ...], largest: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(map(min, value, largest))

    def halved(self, config: Any, value: tuple[int, ...], least: tuple[int, ...]) -> tuple[int, ...]:
        sides = zip(value, least, self.rule.patch(config), strict=True)
        return tuple(max(old, side // 2 // patch * patch) for side, old, patch in sides)

    def mechanisms(self, causal: bool) -> list[str]:
        return ["full", *list_mechanisms(grid=True)]

    def check_candidate(self, mechanism: Mechanism, sizes: InputSizes | None) -> None:
        check_mechanism_for_grid(mechanism.name, mechanism.options.to_dict())
        assert sizes is not None
        mechanism.on_grid(sizes.new.grid, check=True)
        mechanism.on_grid(sizes.old.grid).pairs(sizes.old.tokens)  # the result reads the old size, too

    def own_windows(self, sizes: InputSizes) -> list[str]:
        side = min(sizes.old.grid.sizes)
        return [f"window2d:window={side}", f"segmented:block_size={side * side},integration=pooled,order=tiles:{side}x{side}"]

    def compared_at(self, sizes: InputSizes, config: Any, at: Any) -> InputSize:
        """The result's size by default, since interpolated positions lie between trained ones."""
        if at is None:
            return sizes.new
        size = read_size(at)
        if any(side > largest for side, largest in zip(size, sizes.new.value, strict=True)):
            raise LengthError(
                f"Candidates are compared on images of up to {sizes.new.words}, which the result reads, not of "
                f"{self.rule.describe(size)}; change --compare-at, or leave it out."
            )
        return self.size(config, size)

    def resizing(self) -> str:
        """How the base finds positions for inputs larger than its position table."""
        return f"{INTERPOLATE_ARGUMENT}=True" if self.rule.interpolates else "its resized position table"

    def arguments_for_resizing(self) -> dict[str, Any]:
        return {INTERPOLATE_ARGUMENT: True} if self.rule.interpolates else {}

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        height, width = self.rule.sizes(self.values_of(config))[1]
        processed = ProcessorFile.find(folder, IMAGE_PROCESSOR) is not None
        task, lines = "image-feature-extraction", image_lines(height, width, processed=processed)
        return Example(task, IMAGE_READER, lines, (PILLOW,)) if processed else Example(task, None, lines)

    def longest_read(self, config: Mapping[str, Any], length: int) -> str:
        longest = self.rule.describe(self.rule.sizes(self.values_of(config))[1])
        return f"It was made for images of {longest}. Other multiples of the patch run as well, but were not verified."

    def limits(self, config: Mapping[str, Any], attentions: Mapping[str, LongAttentionConfig], length: int) -> list[str]:
        limits, attention = [self.longest_read(config, length)], attentions.get("")
        if attention is not None:
            limits.append(full_attention_on_images(self.rule, self.values_of(config), attention))
        return limits

    def decide(self, source: Any, architecture: Any, request: Any, layers_of: Layers) -> InputPlan:
        sizes = grid_sizes(architecture, request)
        attention = grid_attention(architecture, request, sizes)
        layers = sizes.new.bound(layers_of(attention, sizes.new.tokens))
        positions = grid_positions(request.positions, sizes, layers)
        return InputPlan(
            sizes=sizes,
            attention=attention,
            positions=positions,
            extension=positions,
            fields={"long_image_size": list(sizes.new.value)} if sizes.grows else {},
            warnings=tuple(grid_warnings(positions, attention, layers, sizes)),
            files=processor_files(source, architecture, sizes),
        )

    def inputs(self, config: Any, folder: Path, recording: Path | None = None) -> VerificationImages:
        processor = load_processor(folder, IMAGE_PROCESSOR)
        mean, std = (getattr(processor, name, None) for name in ("image_mean", "image_std"))
        return VerificationImages(self.rule, config, mean, std)

    def arguments(self, config: Any, values: Tensor) -> dict[str, Any]:
        return self.rule.arguments(config, values)

    def check_reader(self, plan: Any, result: Path, inputs: VerificationImages) -> list[Check]:
        """Check that the written image processor makes images of the new size."""
        rule, size, place, name = self.rule, plan.inputs.new.value, ProcessorFile.find(result, IMAGE_PROCESSOR), "image processor"
        if place is None:
            return [Check(name, SKIPPED, f"the source has no {name}, so make inputs of {rule.describe(size)} as it was trained")]
        try:
            processor: Any = load_processor(result, IMAGE_PROCESSOR)
            fixed = processed_size(processor)
            if math.prod(size) > PROCESSED_PIXELS and fixed not in (None, size):
                return [Check(name, FAILED, f"the {name} is set to {pixels(fixed)} instead of {pixels(size)}")]
            if math.prod(size) > PROCESSED_PIXELS:
                detail = f"it was not run, since inputs of {rule.describe(size)} are large; its settings are for this size"
                return [Check(name, SKIPPED, detail)]
            sizes: dict[str, tuple[int, ...]] = {}
            for sides in [PHOTO_SIZE] * (fixed is not None) + [size]:  # the first has to be resized
                values = processor(torch.zeros(*sides, COLOURS, dtype=torch.uint8).numpy(), return_tensors="pt")[PIXELS]
                sizes[f"images of {pixels(sides)}"] = tuple(torch.as_tensor(values).shape[-2:])
        except (CheckpointError, ValueError, TypeError, KeyError, RuntimeError) as error:
            return [Check(name, FAILED, f"the {name} of the result does not run: {in_a_line(error).rstrip('.')}")]
        wrong = next((after for after in sizes.values() if after != size and (rule.interpolates or plan.inputs.grows)), None)
        if wrong is not None:
            made, needed = rule.describe(wrong), rule.describe(size)
            return [Check(name, FAILED, f"the {name} makes inputs of {made} instead of {needed}; correct the size in {place.file}")]
        processed = next(iter(sizes.values()))
        values = {IMAGE_SIZE: None if fixed is None else list(processed)}
        return [Check(name, PASSED, f"{' and '.join(sizes)} become inputs of {rule.describe(processed)}", values)]

    def states(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The last hidden states if ``outputs`` has them, otherwise all outputs. Without a pooled state that is computed from them."""
        states = {name: value for name, value in outputs.items() if name == STATES}
        return states or dict(outputs)

    def untrained_distances(self, plan: Any, mechanism: Mechanism, positions: str) -> str:
        tiled = positions == TILE and not fits_tiles(mechanism.on_grid(plan.inputs.new.grid), plan.inputs)
        return "sees cells of several repetitions of the tiled positions" if tiled else ""

    def config_as_source(self, plan: Any) -> Any:
        """The result's config with interpolated positions; ``None`` unless the result's positions are tiled."""
        if plan.positions != TILE:
            return None
        config = copy.deepcopy(plan.config)
        config.position_extension = INTERPOLATE
        return config

    def further_checks(self, plan: Any, inputs: VerificationImages, size: InputSize, layers: Sequence[Mechanism]) -> FurtherChecks:
        return CropChecks(plan, size, layers)


STATES = "last_hidden_state"


def full_attention_on_images(rule: GridRule, config: Any, attention: LongAttentionConfig) -> str:
    """A sentence: on which square images every layer equals full attention. Up to the model's size; or a layer that never does."""
    made_for, patch = rule.of_size(config, rule.sizes(config)[1]), rule.patch(config)
    squares = {side: Grid((side,) * made_for.rank, made_for.prefix) for side in range(2, max(made_for.sizes) + 1)}
    sides_by_layer = [
        {side for side, grid in squares.items() if prototype(*chosen).on_grid(grid, layer=number).covers(grid.length)}
        for number, chosen in enumerate(map(attention.for_layer, range(config.num_hidden_layers)))
    ]
    sides = set.intersection(*sides_by_layer)
    if sides:
        size = " × ".join(str(max(sides) * pixels) for pixels in patch)
        return f"Every layer equals full attention on images of {'up to ' if min(sides) == 2 else ''}{size} pixels."
    number = next((number for number, sides in enumerate(sides_by_layer) if not sides), 0)
    name, options = attention.for_layer(number)
    hides_prefix = made_for.prefix and options.get("prefix_tokens", GLOBAL) != GLOBAL
    why = "whose patches do not see the tokens before them" if hides_prefix else "which leaves patches out on every image"
    return f"On no image does every layer equal full attention: layer {number} has `{name}`, {why}."


def grid_sizes(architecture: Any, request: Any) -> InputSizes:
    """The sizes of source and result.

    Raises:
        GridError: a size is not a multiple of the patch, or smaller than the source's.
        PositionError: the size grows, but the source's position table is not square and transformers resizes only square ones.
    """
    rule, config = architecture.family.rule, architecture.source_config
    assert rule is not None
    old, read = rule.sizes(config)
    new = read if request.image_size is None else read_size(request.image_size)
    sizes = architecture.kind.sizes_between(config, old, new)
    if any(after < before for after, before in zip(new, old, strict=True)):
        raise GridError(
            f"The source reads images of {rule.describe(old)} and conversion only enlarges them: {rule.describe(new)} are too few, "
            f"give at least --image-size {'x'.join(map(str, old))}."
        )
    if sizes.grows and len(set(sizes.old.grid.sizes)) > 1:
        raise PositionError(
            f"The position table of {architecture.source_class} has {' × '.join(map(str, sizes.old.grid.sizes))} positions, and "
            "transformers resizes square ones only; leave --image-size out."
        )
    return sizes


def grid_attention(architecture: Any, request: Any, sizes: InputSizes) -> LongAttentionConfig:
    """The requested attention, by default the family's default mechanism. Its windows are as large as the source's grid unless the request
    gives ``window``.

    Raises:
        OptionError, GridError: a layer's mechanism is for texts, or its options do not fit the grid.
    """
    kind: Any = architecture.family.config_class
    name, sides = kind.default_mechanism, sizes.old.grid.sizes
    default = {"window": list(sides) if len(set(sides)) > 1 else sides[0]}
    if request.long_attention is not None:
        attention = request.attention()
    else:
        named = request.mechanism is not None or bool(request.layers)
        values = (request if named else replace(request, mechanism=name)).attention().to_dict()
        attention = LongAttentionConfig.from_dict(_with_defaults(values, name, default))
    layers = architecture.source_config.num_hidden_layers
    attention.check_layers(layers)
    for layer in range(layers):
        name, options = attention.for_layer(layer)
        check_mechanism_for_grid(name, dict(options))
        if not sizes.new.grid.prefix and options.get("prefix_tokens") is not None:
            raise OptionError(
                f"prefix_tokens={options['prefix_tokens']} is about tokens before the patches, and a {architecture.source_class} has none; "
                "leave it out."
            )
        prototype(name, options).on_grid(sizes.new.grid, check=True)
    return attention


def _with_defaults(value: Any, name: str, default: Mapping[str, Any]) -> Any:
    """The configuration ``value`` with ``default`` options added. They are added wherever it chooses the mechanism ``name`` without giving
    them."""
    if isinstance(value, Mapping):
        inside = {key: _with_defaults(inner, name, default) for key, inner in value.items()}
        return (
            {**inside, **{key: option for key, option in default.items() if key not in inside}}
            if inside.get("mechanism") == name
            else inside
        )
    return [_with_defaults(inner, name, default) for inner in value] if isinstance(value, list) else value


def grid_positions(positions: str, sizes: InputSizes, layers: Sequence[Mechanism]) -> str:
    """The rule for positions. ``"auto"`` tiles if the size grows and every layer's windows lie within one repetition of the table.

    Args:
        positions: the requested rule.
        sizes: the sizes of source and result.
        layers: the mechanism of each layer, bound to the result's grid.

    Raises:
        PositionError: the rule is unknown, or is for texts.
    """
    known = (AUTO, TILE, INTERPOLATE)
    if positions not in known:
        raise PositionError(
            f"{positions!r} does not apply to the positions of images; expected one of {', '.join(known)}.{nearest(positions, known)}"
        )
    if positions != AUTO:
        return positions
    return TILE if sizes.grows and all(fits_tiles(layer, sizes) for layer in layers) else INTERPOLATE


def fits_tiles(layer: Mechanism, sizes: InputSizes) -> bool:
    """Whether every cell sees only cells in its own repetition of the tiled table."""
    blocks = layer.grid_blocks(sizes.new.grid)
    return blocks is not None and all(side % block == 0 for side, block in zip(sizes.old.grid.sizes, blocks, strict=True))


def grid_warnings(rule: str, attention: LongAttentionConfig, layers: Sequence[Mechanism], sizes: InputSizes) -> list[PositionWarning]:
    """One warning for each mechanism whose positions in larger images need training."""
    if not sizes.grows:
        return []
    old = " × ".join(map(str, sizes.old.grid.sizes))
    numbers: dict[tuple[str, bool], list[int]] = {}
    for number, layer in enumerate(layers):
        name, options = attention.for_layer(number)
        windowed = layer.grid_blocks(sizes.new.grid) is not None
        if windowed if rule == INTERPOLATE else not fits_tiles(layer, sizes):
            numbers.setdefault((write_choice({"mechanism": name, **options}), windowed), []).append(number)
    warnings = []
    for (name, _), at in numbers.items():
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


def processor_files(source: Any, architecture: Any, sizes: InputSizes) -> dict[str, dict[str, Any]]:
    """The image processor's file for the new size. Empty if the source has none or the file does not change.

    Raises:
        CheckpointError: the processor makes inputs that the source cannot read, or cannot be set to the new size.
    """
    place = ProcessorFile.find(source.folder, IMAGE_PROCESSOR)
    if place is None:
        return {}
    processor = load_processor(source.folder, IMAGE_PROCESSOR)
    processed, old, new = processed_size(processor), sizes.old.value, sizes.new.value
    if processed is not None and processed != old and sizes.kind.rule.interpolates:
        raise CheckpointError(
            f"The image processor of {source.name!r} makes images of {pixels(processed)}, but its config.json says "
            f"{IMAGE_SIZE}={architecture.source_config.image_size}; correct the size in {place.file}, or {IMAGE_SIZE}."
        )
    return {} if new == old else place.with_values(values_of_size(place, processor, new))


COLOURS = 3


PHOTOGRAPHS = ("china.jpg", "flower.jpg")


@cache
def photographs() -> tuple[Tensor, ...]:
    """scikit-learn's photographs of 427 × 640 pixels, ``(3, height, width)`` uint8. Empty without scikit-learn or Pillow."""
    try:
        from sklearn.datasets import load_sample_image

        return tuple(torch.tensor(load_sample_image(name)).permute(2, 0, 1) for name in PHOTOGRAPHS)
    except ImportError:
        return ()


class VerificationImages:
    """Verification inputs of any size.

    Args:
        rule, config: the model's grid rule, and the model's config.
        mean, std: mean and standard deviation of each colour in the source's image processor; ``None`` for 0.5.
    """

    def __init__(self, rule: GridRule, config: Any, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        self.rule, self.config = rule, config
        self.mean, self.std = mean or [0.5] * COLOURS, std or [0.5] * COLOURS
        reads_colours = config.num_channels == COLOURS == len(self.mean) == len(self.std)
        self.photographs = photographs() if reads_colours else ()
        self.why_seeded = "scikit-learn is not installed" if reads_colours else "the model does not read images of three colours"

    def at(self, size: InputSize) -> dict[str, Any]:
        """The arguments of ``forward`` for one input of this size."""
        return self.rule.arguments(self.config, self.pixels(size.value))

    def pixels(self, size: tuple[int, ...]) -> Tensor:
        """One input ``(1, channels, …)`` of this many pixels along each axis."""
        if not self.photographs:
            return self.rule.seeded(self.config, size)
        resized = interpolate(self.photographs[0][None].float() / 255, size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values).view(1, COLOURS, 1, 1) for values in (self.mean, self.std))
        return (resized - mean) / std

    def describe(self) -> str:
        """Description of the inputs for a report."""
        seeded = f"seeded images, since {self.why_seeded}"
        return f"scikit-learn's photograph {PHOTOGRAPHS[0]}" if self.photographs else seeded


PROCESSED_PIXELS = 2**25
"""Maximum pixels of an input for running the processor. For larger inputs only its settings are compared."""
PHOTO_SIZE = (427, 640)
"""Height and width of an image that the image processor has to resize."""


CROPS = "patch features equal to the source's on each crop of the old size"


class CropChecks(FurtherChecks):
    """Compares each window of the old size with the source's output for that crop. Only if positions are tiled and no token sees two
    windows."""

    def __init__(self, plan: Any, size: InputSize, layers: Sequence[Mechanism]) -> None:
        self.sizes, self.size, self.positions = plan.inputs, size, plan.positions
        self.why_not = self._why_not(layers)
        self.runs = 1 if self.why_not else 2
        self.crops: dict[tuple[int, ...], Tensor] = {}

    def _why_not(self, layers: Sequence[Mechanism]) -> str:
        """Why patch features need not equal the source's on crops, as a clause. Empty if they must."""
        rule: GridRule = self.sizes.kind.rule
        if not rule.adds_positions:
            return "positions are more than a table that is added to the patches"
        if self.positions != TILE:
            return f"positions are not tiled ({self.positions})"
        window = self.sizes.old.grid.sizes
        if any(layer.grid_blocks(self.size.grid) != window for layer in layers):
            return f"some layers have other windows than {' × '.join(map(str, window))} cells"
        if any(_reads_prefix(layer, self.size.grid) for layer in layers):
            return "patches see the class token or registers, which see the whole image (with --option prefix_tokens=none they do not)"
        return ""

    def run_source(self, base: Any, inputs: Mapping[str, Any]) -> None:
        """Run the source without prefix tokens on every whole window. Stores the patch features by the window's place."""
        if self.why_not:
            return
        prefix = self.size.grid.prefix

        def cells_only(module: Any, args: Any, output: Any) -> Any:
            return output[:, prefix:] if isinstance(output, Tensor) else (output[0][:, prefix:], *output[1:])

        old = self.sizes.old
        hooks = [base.embeddings.register_forward_hook(cells_only)] if prefix else []
        try:
            windows = [range(after // before) for after, before in zip(self.size.grid.sizes, old.grid.sizes, strict=True)]
            for place in itertools.product(*windows):
                rows, columns = (slice(number * side, (number + 1) * side) for number, side in zip(place, old.value, strict=True))
                self.crops[place] = run_model(base, {PIXELS: inputs[PIXELS][..., rows, columns]})[STATES]
        finally:
            for hook in hooks:
                hook.remove()

    def at_new(self, states: Mapping[str, Tensor]) -> list[Check]:
        if self.why_not:
            return [Check(CROPS, SKIPPED, f"does not apply: {self.why_not}")]
        if STATES not in states:
            raise CheckpointError(f"The result returns no last_hidden_state, but {', '.join(states)}; add --no-verify.")
        new, old = self.size, self.sizes.old
        cells = states[STATES][:, new.grid.prefix :].unflatten(1, new.grid.sizes)
        measured = {}
        for place in self.crops:
            window = cells
            for axis, (number, side) in enumerate(zip(place, old.grid.sizes, strict=True), 1):
                window = window.narrow(axis, number * side, side)
            measured[place] = window.flatten(1, -2)
        difference = Difference.of(*({str(place): features for place, features in each.items()} for each in (self.crops, measured)))
        detail = (
            f"patch features at {new.describe()} and the source's, without tokens before its patches, on {len(self.crops)} crops of "
            f"{old.words}: largest difference"
        )
        return [equality(CROPS, detail, difference, {"crops": len(self.crops), new.name: new.number})]


def _reads_prefix(layer: Mechanism, grid: Grid) -> bool:
    """Whether cells see the prefix tokens before the grid."""
    if not grid.prefix:
        return False
    call = layer.on_grid(Grid((1,) * grid.rank, grid.prefix))
    q = torch.zeros(1, layer.num_heads, grid.prefix + 1, layer.head_dim)
    return bool(call.weights(q, q)[0, 0, -1, : grid.prefix].any())
