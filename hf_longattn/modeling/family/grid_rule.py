"""How the tokens of an input that is not text lie on a grid: patches of a picture, after class and register tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...engines.common.grid import Grid
from ...errors import GridError


@dataclass(frozen=True)
class GridRule:
    """The grid of a model's input, which its patch embedding cuts into patches that do not overlap.

    prefix: tokens before the patches, a number or a function of the config.
    input: the argument of ``forward`` with the pixels, ``(…, height, width)``.
    shapes: the argument of ``forward`` with the patches of every input along each axis, ``(B, axes)``, where the pixels are patches
        ``(B, patches, D)`` with padding (SigLIP 2).
    axes: names of the axes, the first one the slowest.
    interpolates: whether ``forward`` takes ``interpolate_pos_encoding``, by which the base resizes its position table.
    """

    prefix: int | Callable[[Any], int] = 0
    input: str = "pixel_values"
    shapes: str | None = None
    axes: tuple[str, ...] = ("height", "width")
    interpolates: bool = True

    def prefix_of(self, config: Any) -> int:
        """The number of tokens before the patches with this config."""
        return self.prefix if isinstance(self.prefix, int) else self.prefix(config)

    def patch(self, config: Any) -> tuple[int, ...]:
        """Pixels of a patch along each axis."""
        size = config.patch_size
        return (size,) * len(self.axes) if isinstance(size, int) else tuple(size)

    def of_size(self, config: Any, size: tuple[int, ...]) -> Grid:
        """The grid of an input of this many pixels along each axis.

        Raises:
            GridError: an axis is no multiple of the patch.
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

    def of_input(self, config: Any, arguments: Mapping[str, Any]) -> Grid | tuple[Grid, ...] | None:
        """The grid of the input of a forward pass, or the grid of each input where they differ or have padding; ``None`` without one."""
        pixels = arguments.get(self.input)
        if pixels is None or (self.shapes is not None and arguments.get(self.shapes) is None):
            return None
        if self.shapes is None:
            return self.of_size(config, tuple(pixels.shape[-len(self.axes) :]))
        prefix = self.prefix_of(config)
        grids = tuple(Grid(tuple(sizes), prefix) for sizes in arguments[self.shapes].tolist())
        fills = len(set(grids)) == 1 and grids[0].cells == pixels.shape[1]
        return grids[0] if fills else grids
