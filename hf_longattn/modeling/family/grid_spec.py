"""Images: the grid of their patches, and the config of Long image models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...engines.token_grid import Grid
from ...errors import InputError, OptionError
from ...mechanisms import Mechanism
from ...mechanisms.common.capabilities import grid_blocks, on_grid
from .input_spec import Example, InputSize, InputSizes, InputSpec, has_processor
from .long_config import LongEncoderConfig

INTERPOLATE, TILE = "interpolate", "tile"
PIXELS = "pixel_values"
IMAGE_SIZE = "image_size"
"""The config's field with the input's size."""
INTERPOLATE_ARGUMENT = "interpolate_pos_encoding"
"""The argument of ``forward`` that makes a base resize its position table."""
PATCH_MASK = "bool_masked_pos"
"""The argument of ``forward`` that marks the patches to rebuild, ``(B, patches)`` bool."""


@dataclass(frozen=True)
class GridSpec(InputSpec):
    """The images that a model reads, and the grid of their patches, which do not overlap. Methods take and return an
    image's size as ``(height, width)`` in pixels.

    prefix: number of tokens before the patches, or a function of the config that returns this number.
    interpolates: whether ``forward`` takes ``interpolate_pos_encoding``, by which the base resizes its position table.
    adds_positions: whether positions are only a table that is added to the patches. The base can then compute the
        patches of a part of an image, without prefix tokens.
    square: class names of the base's heads that arrange patches as a square image.
    """

    reads, noun, nouns, units = "grid", "image", "images", "pixels"
    mixins = ("modeling.grids.LongGridMixin", "modeling.grids.LongGridModelMixin")
    on_grid = True
    prefix: int | Callable[[Any], int] = 0
    interpolates: bool = True
    adds_positions: bool = True
    square: tuple[str, ...] = ()

    def prefix_of(self, config: Any) -> int:
        """Number of tokens before the patches."""
        return self.prefix if isinstance(self.prefix, int) else self.prefix(config)

    def patch(self, config: Any) -> tuple[int, ...]:
        """Size of a patch along each axis, in pixels.

        Raises:
            InputError: the config's ``patch_size`` is neither one number of pixels nor one number for each axis.
        """
        sides = sides_of(config.patch_size)
        if len(sides) != 2:
            raise InputError(
                f"The config says patch_size={config.patch_size!r:.40}, but a patch is a number of pixels, or one for "
                "each axis."
            )
        return sides

    def describe(self, size: tuple[int, ...]) -> str:
        """A size as text, for example "768 × 1024 pixels"."""
        return f"{' × '.join(map(str, size))} pixels"

    def pixels(self, config: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Two sizes in pixels: for which the position table was trained, and for which the model was converted."""
        trained = image_size(config.image_size)
        converted = getattr(config, "long_image_size", None)
        return trained, trained if converted is None else image_size(converted)

    def size(self, config: Any, value: Any) -> InputSize:
        """The size of an image. ``value``: pixels of both sides, or height and width, or text such as "768x1024".

        Raises:
            InputError: ``value`` is none of these, or a side is not a multiple of the patch.
        """
        sides = value
        if isinstance(value, str) and (typed := re.fullmatch(r"(\d{1,6})(?:[x×](\d{1,6}))?", value.strip().lower())):
            sides = [int(side) for side in typed.groups(typed[1])]
        if isinstance(sides, str) or len(size := image_size(sides)) != 2:
            raise InputError(
                f"An image size is {value!r:.40}, but must be pixels, or height and width: 1024, or 768x1024."
            )
        grid = self.of_size(config, size)
        return InputSize(size, grid.length, self.describe(size), IMAGE_SIZE, grid)

    def sizes(self, family: Any, config: Any) -> InputSizes:
        return self.between(config, *self.pixels(config), reads_new=True)

    def check_mechanism(self, mechanism: Mechanism) -> None:
        """Raise :class:`OptionError` for a mechanism that needs an order of tokens, as a text has it."""
        images = mechanism.capabilities.images
        if images == "neighbours":
            raise OptionError(
                f"Mechanism {mechanism.name!r} sees neighbours along a text, and an image has none; choose a "
                "mechanism on a grid such as 'window2d'."
            )
        if images == "segments":
            raise OptionError(
                f"Mechanism {mechanism.name!r} reads one segment of a text after the other and remembers the earlier "
                "ones, and the patches of an image have no such order; choose a mechanism on a grid such as "
                "'window2d'."
            )

    def untrained(self, sizes: InputSizes, mechanism: Mechanism, strategy: str, positions: str, causal: bool) -> str:
        """Why tiled positions need training: a cell sees two cells with equal positions. Empty if none does."""
        if positions == TILE and not fits_tiles(sizes, on_grid(mechanism, sizes.new.grid)):
            return "sees cells of several repetitions of the tiled positions"
        return ""

    def example(self, folder: Path, config: Any, length: int) -> Example:
        """Code for a card that makes an input: with the image processor if the folder has one, else random."""
        height, width = self.pixels(config)[1]
        task = "image-feature-extraction"
        if has_processor(folder):
            return image_example(task, height, width)
        line = (
            f'inputs = {{"pixel_values": torch.rand(1, 3, {height}, {width}) * 2 - 1}}  # images, normalised as '
            "the model was trained"
        )
        return Example(task, None, line)

    def seeded(self, config: Any, size: tuple[int, ...]) -> Tensor:
        """A random input ``(1, channels, *size)`` from a normal distribution, the same in every call."""
        return torch.randn(1, int(config.num_channels), *size, generator=torch.Generator().manual_seed(0))

    def of_size(self, config: Any, size: tuple[int, ...]) -> Grid:
        """The grid of an input of this many pixels along each axis.

        Raises:
            InputError: an axis is not a multiple of the patch.
        """
        patch = self.patch(config)
        for axis, pixels, side in zip(("height", "width"), size, patch, strict=True):
            if pixels % side or not pixels:
                nearest = max(side, round(pixels / side) * side)
                raise InputError(
                    f"The {axis} of an input is {pixels} pixels, which is not a multiple of the patch's {side}; "
                    f"resize it, for example to {nearest}."
                )
        return Grid(tuple(pixels // side for pixels, side in zip(size, patch, strict=True)), self.prefix_of(config))

    def check_head(self, head: str, config: Any, arguments: Mapping[str, Any]) -> None:
        """Raise :class:`InputError` for an image that the base's class ``head`` does not read: one that is not square,
        or one of another size in the computation of a loss."""
        pixels = arguments.get(PIXELS)
        if pixels is None or head not in self.square:
            return
        height, width = pixels.shape[-2:]
        if height != width:
            raise InputError(
                f"{head} puts the patches of an image together to a square, but this one has {height} × {width} "
                f"pixels; crop or resize it, for example to {min(height, width)} × {min(height, width)}, or use a "
                "model without this head."
            )
        trained = image_size(config.image_size)
        if arguments.get(PATCH_MASK) is not None and (height, width) != trained:
            raise InputError(
                f"{head} computes its loss for images of {self.describe(trained)}, but this one has "
                f"{height} × {width} pixels; resize it, or leave {PATCH_MASK} out."
            )

    def of_input(self, config: Any, arguments: Mapping[str, Any]) -> Grid | None:
        """The grid of the images in the arguments of ``forward``; ``None`` without images."""
        pixels = arguments.get(PIXELS)
        return None if pixels is None else self.of_size(config, tuple(pixels.shape[-2:]))


def sides_of(size: Any) -> tuple[int, ...]:
    """The sides of a size that is given as one number for both axes, or as a list of numbers. Empty if ``size`` is
    neither."""
    sides = [size, size] if isinstance(size, int) else size
    if isinstance(sides, list | tuple) and all(type(side) is int and side > 0 for side in sides):
        return tuple(sides)
    return ()


def image_size(size: Any) -> tuple[int, ...]:
    """The sides of a size that is given as one number of pixels for both axes, or as several, height first.

    Raises:
        InputError: ``size`` is neither.
    """
    sides = sides_of(size)
    if not sides:
        raise InputError(f"An image size is {size!r}, but must be pixels, or height and width: 1024, or [768, 1024].")
    return sides


class LongGridConfig(LongEncoderConfig):
    """Mixin before the base's config class: ``class LongViTConfig(LongGridConfig, ViTConfig)``.

    long_attention: as in a text model. The default is ``window2d`` if the base's attention is full.
    image_size: the size of the images for which the position table was trained, as in the base's config.
    long_image_size: ``(height, width)``, in pixels, for which the model was converted. The model also reads other
        sizes.
    position_extension: how larger images get positions. ``"interpolate"`` resizes the table by the base's own method.
        ``"tile"`` repeats the table along both axes, so every whole repetition has exactly the trained positions
        (Bolya et al. 2023, Window Attention is Bugged). Neither changes the stored table.
    """

    default_mechanism = "window2d"
    input_spec = GridSpec()

    if TYPE_CHECKING:
        long_image_size: list[int] | None
    else:
        long_image_size = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the fields of image models, and read the other fields.

        Raises:
            OptionError: ``position_extension`` is neither ``"interpolate"`` nor ``"tile"``.
            InputError: ``long_image_size`` is not a size.
        """
        extension = kwargs.setdefault("position_extension", INTERPOLATE)
        if extension not in (INTERPOLATE, TILE):
            raise OptionError(
                f"position_extension is {extension!r}, but must be {INTERPOLATE!r} or {TILE!r} for a model of images."
            )
        size = kwargs.pop("long_image_size", None)
        self.long_image_size = None if size is None else list(image_size(size))
        super().__post_init__(**kwargs)


def fits_tiles(sizes: InputSizes, layer: Mechanism) -> bool:
    """Whether every cell sees only cells with different positions, if the old position table is repeated over the new
    grid. This is so if the blocks of cells that see each other divide the old grid.

    layer: the mechanism of a layer, on the new grid.
    """
    blocks = grid_blocks(layer, sizes.new.grid)
    return blocks is not None and all(
        side % block == 0 for side, block in zip(sizes.old.grid.sizes, blocks, strict=True)
    )


def image_example(task: str | None, height: int, width: int) -> Example:
    """Code for a model card that makes an input of ``height`` × ``width`` pixels with the image processor.

    task: the Hub's name of the model's task; ``None`` without one.
    """
    lines = (
        f'image = Image.new("RGB", ({width}, {height}), "white")  # or yours: Image.open("photo.jpg").convert("RGB")\n'
        'inputs = processor(image, return_tensors="pt")'
    )
    return Example(task, ("processor", "AutoImageProcessor"), lines, ("from PIL import Image",))
