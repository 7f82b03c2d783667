"""How tokens lie on a grid. The patches of an image, video or spectrogram, after class and register tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...engines.common.grid import Grid
from ...errors import BackendError, GridError
from .input_rule import InputRule

if TYPE_CHECKING:
    from torch import Tensor


PIXELS = "pixel_values"
IMAGE_SIZE = "image_size"
"""The config's field with the input's size."""
INTERPOLATE_ARGUMENT = "interpolate_pos_encoding"
"""The argument of ``forward`` that makes a base resize its position table."""
PATCH_MASK = "bool_masked_pos"
"""The argument of ``forward`` that marks the patches to rebuild, ``(B, patches)`` bool."""


@dataclass(frozen=True)
class GridRule(InputRule):
    """The grid of a model's input, which its patch embedding cuts into patches without overlap.

    prefix: number of tokens before the patches, or a function of the config that returns it.
    input: the argument of ``forward`` with the pixels, ``(…, height, width)``.
    shapes: the argument of ``forward`` with each input's number of patches along each axis, ``(B, axes)``, if pixels come as patches
        ``(B, patches, D)`` with padding (SigLIP 2). A tuple of numbers means that every input has this shape, without padding.
    axes: names of the axes, the slowest-varying first.
    has_positions: whether the model has positions that are resized or tiled for larger inputs.
    why_no_crops: why patches of a crop get other features than in the whole image, with every mechanism; empty if they get the same.
    returns_maps: whether hidden states are maps ``(B, D, height, width)`` rather than rows ``(B, N, D)``.
    table_size: the config's field with the input size for which the position table was trained. If this is not ``image_size``, the model
        was trained further on inputs of ``image_size``.
    square: heads of the base that arrange patches as a square image.
    trained_size: heads of the base that read the size of images from the config.
    interpolates: whether ``forward`` takes ``interpolate_pos_encoding``, by which the base resizes its position table.
    noise: the argument of ``forward`` with a random number per patch, ``(B, patches)``, by which the base drops patches (ViT-MAE).
    adds_positions: whether positions are only a table added to the patches. The base can then compute the patches of a crop by themselves,
        without prefix tokens.
    resizes: the input sizes, other than the table's, that the base reads: ``"square"`` (any size, if the table is a square) or ``"none"``.
    noun: the word for an input.
    size_name: the word for its size in reports.
    side: the config's field with the input's size.
    counts_places: whether positions are the grid positions themselves, so that larger inputs continue them.
    size_flag: the conversion's option for the size.
    units: the unit of the size.
    """

    reads = "grid"
    mixins = ("LongGridMixin", "LongGridModelMixin")
    counts_tokens = False
    prefix: int | Callable[[Any], int] = 0
    input: str = PIXELS
    shapes: str | None = None
    axes: tuple[str, ...] = ("height", "width")
    interpolates: bool = True
    noise: str | None = None
    adds_positions: bool = True
    has_positions: bool = True
    why_no_crops: str = ""
    returns_maps: bool = False
    table_size: str = IMAGE_SIZE
    square: tuple[str, ...] = ()
    trained_size: tuple[str, ...] = ()
    resizes: Literal["square", "none"] = "square"
    noun: str = "image"
    size_name: str = IMAGE_SIZE
    side: str = IMAGE_SIZE
    counts_places: bool = False
    size_flag: str = "--image-size"
    units: str = "pixels"

    def prefix_of(self, config: Any) -> int:
        """Number of tokens before the patches with this config."""
        return self.prefix if isinstance(self.prefix, int) else self.prefix(config)

    def patch(self, config: Any) -> tuple[int, ...]:
        """Size of a patch along each axis, in pixels.

        Raises:
            GridError: the config's ``patch_size`` is neither one number of pixels nor one number for each axis.
        """
        size = config.patch_size
        sides = (size,) * len(self.axes) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
        if len(sides) != len(self.axes) or not all(isinstance(side, int) and side > 0 for side in sides):
            raise GridError(f"The config says patch_size={size!r:.40}, but a patch is a number of pixels, or one for each axis.")
        return sides

    def step(self, config: Any) -> tuple[int, ...]:
        """Distance between neighbouring patches along each axis, in pixels."""
        return self.patch(config)

    def channels(self, config: Any) -> int:
        """Number of channels of a pixel."""
        return int(config.num_channels)

    def describe(self, size: tuple[int, ...]) -> str:
        """A size as text, for example "768 × 1024 pixels"."""
        return f"{' × '.join(map(str, size))} pixels"

    def typed(self, size: tuple[int, ...]) -> str:
        """A size in the form that users type after :attr:`size_flag`, for example "768x1024"."""
        return "x".join(map(str, size))

    def doubled(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Twice the size, along each axis that can grow."""
        return tuple(2 * side for side in size)

    def enlarged(self, size: tuple[int, ...], pixels: tuple[int, ...] | None, frames: int | None) -> tuple[int, ...]:
        """``size`` with the height and width ``pixels`` and the number of ``frames`` replaced. ``None`` leaves them as they are.

        Raises:
            GridError: frames were given, but inputs are not videos.
        """
        if frames is not None:
            raise GridError(f"{frames} frames were given, but the model reads {self.noun}s, which have none; leave --frames out.")
        return pixels or size

    @property
    def reads_photographs(self) -> bool:
        """Whether inputs consist of images: a single one, or the frames of a video."""
        return self.noun in ("image", "video")

    @property
    def checks_processor(self) -> bool:
        """Whether inputs have the config's size, so that an image processor must produce this size."""
        return self.interpolates

    @property
    def reads_images(self) -> bool:
        """Whether an input is an image, rather than a video or a spectrogram."""
        return self.noun == "image"

    def extractor_fields(self, size: tuple[int, ...]) -> dict[str, Any]:
        """Fields of the feature extractor's file that set the size of its outputs. Empty for image processors."""
        return {}

    @contextmanager
    def resized(self, base: Any, size: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        """Context in which transformers' headless model reads inputs of this larger size. With the arguments that are returned."""
        yield {INTERPOLATE_ARGUMENT: True} if self.interpolates else {}

    def fields_of_size(self, size: tuple[int, ...]) -> dict[str, Any]:
        """Fields of a Long config for inputs of this size, larger than the position table's."""
        return {"long_image_size": list(size)}

    def tells_grid(self, arguments: Collection[str]) -> bool:
        return self.input in arguments

    def check_images(self, model: Any, *, of_pixels: bool) -> None:
        if of_pixels and self.axes != ("height", "width"):
            raise BackendError(f"{type(model).__name__} reads {self.noun}s, not images; give a model of images.")

    def check_base(self, config: Any, arguments: Mapping[str, Any]) -> None:
        """Raise :class:`GridError` if transformers' model would give an input's tokens the positions of other tokens."""

    def of_seconds(self, config: Any, seconds: float) -> tuple[int, ...]:
        """The size of the input for a sound of this many seconds.

        Raises:
            GridError: inputs are not sounds.
        """
        raise GridError(f"{seconds:g} seconds were given, but the model reads {self.noun}s; give their size as {self.size_flag}.")

    def size_of(self, pixels: Tensor) -> tuple[int, ...]:
        """The size of the inputs ``pixels`` of ``forward``."""
        return tuple(pixels.shape[-len(self.axes) :])

    def crop(self, pixels: Tensor, corner: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
        """The part of inputs of ``forward`` with the given ``size`` that starts at ``corner``."""
        for axis, (start, side) in enumerate(zip(corner, size, strict=True)):
            pixels = pixels.narrow(axis - len(size), start, side)
        return pixels

    def sizes(self, config: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sizes in pixels: of the table's training, and of the conversion."""
        table = getattr(config, self.table_size, None)
        if table is None and self.shapes is not None:  # every size is read, and the table is a square
            table = round(config.num_patches ** (1 / len(self.axes))) * self.patch(config)[0]
        trained = image_size(table)
        converted = getattr(config, "long_image_size", None)
        if converted is None and self.table_size != IMAGE_SIZE:
            converted = [max(sides) for sides in zip(trained, image_size(config.image_size), strict=True)]
        return trained, trained if converted is None else image_size(converted)

    def most_tokens(self, family: Any, config: Any) -> int:
        """Number of tokens of the largest input for which a model was made. It has this config."""
        return self.of_size(config, self.sizes(config)[1]).length

    def seeded(self, config: Any, size: tuple[int, ...]) -> Tensor:
        """A fixed random input of this size, ``(1, channels, …)``, from a normal distribution."""
        import torch

        return torch.randn(1, self.channels(config), *size, generator=torch.Generator().manual_seed(0))

    def arguments(self, config: Any, pixels: Tensor) -> dict[str, Any]:
        """The arguments of ``forward`` for ``pixels (B, channels, …)``, the pixels first. Noise that the base would draw is fixed."""
        import torch

        if self.shapes is not None:
            sizes = self.of_size(config, tuple(pixels.shape[-len(self.axes) :])).sizes
            return {self.input: self._patches(pixels, sizes), self.shapes: sizes}
        arguments: dict[str, Any] = {self.input: pixels}
        if self.noise is not None:
            cells = self.of_size(config, tuple(pixels.shape[-len(self.axes) :])).cells
            arguments[self.noise] = torch.rand(len(pixels), cells, generator=torch.Generator().manual_seed(0))
        return arguments

    def arguments_of_head(self, model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The ``arguments`` of ``forward`` and further arguments that the model's head needs."""
        return dict(arguments)

    def pixels_of(self, config: Any, patches: Tensor, size: tuple[int, ...]) -> Tensor:
        """Pixels ``(B, channels, …)`` of ``size``, made of patches ``(B, patches, D)``."""
        grid, rank = self.of_size(config, size), len(self.axes)
        cells = patches.unflatten(2, (*self.patch(config), -1)).unflatten(1, grid.sizes)
        axes = [axis for pair in zip(range(1, 1 + rank), range(1 + rank, 1 + 2 * rank), strict=True) for axis in pair]
        return cells.permute(0, 1 + 2 * rank, *axes).reshape(len(patches), -1, *size)

    def _patches(self, pixels: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Inputs ``(B, channels, …)`` as patches ``(B, patches, D)``. A pixel's channels are neighbours, as in processors' outputs."""
        rank = len(sizes)
        for axis, cells in enumerate(sizes):
            pixels = pixels.unflatten(2 + 2 * axis, (cells, -1))
        order = (0, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2), 1)
        return pixels.permute(order).flatten(1 + rank).flatten(1, rank)

    def of_size(self, config: Any, size: tuple[int, ...]) -> Grid:
        """The grid of an input of this many pixels along each axis.

        Raises:
            GridError: an axis is not a multiple of the patch.
        """
        patch = self.patch(config)
        for axis, pixels, side in zip(self.axes, size, patch, strict=True):
            if pixels % side or not pixels:
                nearest = max(side, round(pixels / side) * side)
                raise GridError(
                    f"The {axis} of an input is {pixels} pixels, which is not a multiple of the patch's {side}; "
                    f"resize it, for example to {nearest}."
                )
        return Grid(tuple(pixels // side for pixels, side in zip(size, patch, strict=True)), self.prefix_of(config))

    def rows(self, states: Tensor, grid: Grid) -> Tensor:
        """Hidden states of the base on the output grid, as rows ``(B, N, D)``."""
        rows = states.movedim(1, -1).flatten(1, -2) if self.returns_maps else states
        grid.check(rows.shape[1])
        return rows

    def features(self, states: Tensor, grid: Grid) -> Tensor:
        """Hidden states of the base on the output grid, without the prefix. By cell: ``(B, height, width, D)``."""
        return self.rows(states, grid)[:, grid.prefix :].unflatten(1, grid.sizes)

    def check_head(self, head: str, config: Any, arguments: Mapping[str, Any]) -> None:
        """Raise :class:`GridError` for an image that the base's class ``head`` does not read."""
        pixels = arguments.get(self.input)
        if pixels is None or head not in (*self.square, *self.trained_size):
            return
        size, trained = tuple(pixels.shape[-2:]), image_size(config.image_size)
        if head in self.square and size[0] != size[1]:
            raise GridError(
                f"{head} puts the patches of an image together to a square, but this one has {size[0]} × {size[1]} pixels; "
                f"crop or resize it, for example to {min(size)} × {min(size)}, or use a model without this head."
            )
        if head in self.trained_size and size != trained:
            raise GridError(
                f"{head} reads the size of its images from its config, {trained[0]} × {trained[1]} pixels, but this one has "
                f"{size[0]} × {size[1]}; resize it, or use a model without this head."
            )

    def of_input(self, config: Any, arguments: Mapping[str, Any]) -> Grid | tuple[Grid, ...] | None:
        """The grid of a forward pass, or one per input. There are several if they differ or have padding; ``None`` without an input."""
        pixels = arguments.get(self.input)
        if pixels is None or (self.shapes is not None and arguments.get(self.shapes) is None):
            return None
        if self.shapes is None:
            return self.of_size(config, self.size_of(pixels))
        prefix = self.prefix_of(config)
        if isinstance(arguments[self.shapes], tuple):
            grid = Grid(arguments[self.shapes], prefix)
            grid.check(prefix + pixels.shape[1])
            return grid
        grids = tuple(Grid(tuple(sizes), prefix) for sizes in arguments[self.shapes].tolist())
        fills = len(set(grids)) == 1 and grids[0].cells == pixels.shape[1]
        return grids[0] if fills else grids


FRAMES_PER_SECOND = 100
"""Frames of a spectrogram per second. transformers' feature extractors for such models have a step of 10 ms."""


@dataclass(frozen=True)
class SpectrogramGrid(GridRule):
    """The grid of a spectrogram ``(B, frames, mel bins)`` with overlapping patches. The axes are frequency and time.

    Patches begin at every ``frequency_stride``-th mel bin and every ``time_stride``-th frame. Sizes are ``(mel bins, frames)``;
    only the number of frames can grow.
    """

    input: str = "input_values"
    axes: tuple[str, ...] = ("frequency", "time")
    interpolates: bool = False
    resizes: Literal["square", "none"] = "none"
    noun: str = "spectrogram"
    size_name: str = "spectrogram_size"
    size_flag: str = "--audio-seconds"
    units: str = "mel bins × frames"

    def step(self, config: Any) -> tuple[int, ...]:
        return config.frequency_stride, config.time_stride

    def channels(self, config: Any) -> int:
        return 1

    def describe(self, size: tuple[int, ...]) -> str:
        return f"{size[1]:,} frames ({self.typed(size)} s)"

    def typed(self, size: tuple[int, ...]) -> str:
        return f"{size[1] / FRAMES_PER_SECOND:g}"

    def doubled(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return size[0], 2 * size[1]

    def extractor_fields(self, size: tuple[int, ...]) -> dict[str, Any]:
        return {"max_length": size[1]}

    @contextmanager
    def resized(self, base: Any, size: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        """Context in which the base's position table is stretched along time, row by row. The base adds it to all patches."""
        import torch
        from torch import nn
        from torch.nn.functional import interpolate

        embeddings, (rows, columns) = base.embeddings, self.of_size(base.config, size).sizes
        table = embeddings.position_embeddings
        prefix = self.prefix_of(base.config)
        cells = interpolate(table[0, prefix:].unflatten(0, (rows, -1)).mT, columns, mode="linear").mT.flatten(0, 1)
        embeddings.position_embeddings = nn.Parameter(torch.cat([table[0, :prefix], cells])[None])
        try:
            yield {}
        finally:
            embeddings.position_embeddings = table

    def fields_of_size(self, size: tuple[int, ...]) -> dict[str, Any]:
        return {"long_max_length": size[1]}

    def size_of(self, pixels: Tensor) -> tuple[int, ...]:
        return pixels.shape[-1], pixels.shape[-2]

    def pixels_of_input(self, values: Tensor) -> Tensor:
        return values.mT[:, None]

    def crop(self, pixels: Tensor, corner: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
        return super().crop(pixels.mT, corner, size).mT

    def sizes(self, config: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        converted = getattr(config, "long_max_length", None)
        return (config.num_mel_bins, config.max_length), (config.num_mel_bins, converted or config.max_length)

    def of_seconds(self, config: Any, seconds: float) -> tuple[int, ...]:
        return config.num_mel_bins, round(seconds * FRAMES_PER_SECOND)

    def of_size(self, config: Any, size: tuple[int, ...]) -> Grid:
        """The grid of a spectrogram of this many mel bins and frames. Frames after the last complete patch are not read.

        Raises:
            GridError: the number of mel bins is not the model's, or there are fewer frames than in a patch.
        """
        if size[0] != config.num_mel_bins:
            raise GridError(
                f"The input has {size[0]} mel bins, but the model reads {config.num_mel_bins}; give input_values (B, frames, mel bins) as "
                "its feature extractor makes them."
            )
        sides, steps = self.patch(config), self.step(config)
        if size[1] < sides[1]:
            raise GridError(f"The input has {size[1]} frames, fewer than the {sides[1]} of a patch; give a longer sound, or pad it.")
        cells = [(bins - side) // step + 1 for bins, side, step in zip(size, sides, steps, strict=True)]
        return Grid(tuple(cells), self.prefix_of(config))

    def arguments(self, config: Any, pixels: Tensor) -> dict[str, Any]:
        """The arguments of ``forward`` for spectrograms ``(B, 1, mel bins, frames)``."""
        return {self.input: pixels[:, 0].mT.contiguous()}


def image_size(size: Any) -> tuple[int, ...]:
    """A size in pixels as a tuple, the height first. Given as one number or several.

    Raises:
        GridError: ``size`` is neither.
    """
    sizes = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    if not sizes or not all(isinstance(pixels, int) and not isinstance(pixels, bool) and pixels > 0 for pixels in sizes):
        raise GridError(f"An image size is {size!r}, but must be pixels, or height and width: 1024, or [768, 1024].")
    return sizes
