"""How a video's tokens lie on a grid of time, height and width. A token covers a patch of pixels in a tubelet of frames."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...engines.common.grid import Grid
from ...errors import GridError
from .grid_rule import PATCH_MASK, GridRule, image_size

if TYPE_CHECKING:
    from torch import Tensor

FRAMES_FLAG = "--frames"
"""The conversion's option for the number of frames."""
FRAME_AXIS, CHANNEL_AXIS = 1, 2
"""Axes of the input of ``forward``, ``(B, frames, channels, height, width)``."""


@dataclass(frozen=True)
class VideoGrid(GridRule):
    """The grid of a video ``(B, frames, channels, height, width)``. It is cut into tubelets of patches without overlap.

    Sizes are ``(frames, height, width)``.

    frames: the config's field with the number of frames for which positions were trained; ``side`` is the field with their size in pixels.
    colours: the config's field with the number of channels.
    repeats_frames: whether the base repeats a video that is shorter than a tubelet until it fills one (V-JEPA 2).
    numbers_by_side: whether the base numbers a frame's tokens by ``side``, even if the frame has another size (V-JEPA 2).
    leaves_out: the base's argument of ``forward`` that leaves out the predictor of hidden states, which sees all tokens twice.
    resizing: ``(headless model of transformers, size) ->`` a context in which the model reads videos of that size.
    """

    axes: tuple[str, ...] = ("time", "height", "width")
    interpolates: bool = False
    resizes: Literal["square", "none"] = "none"
    noun: str = "video"
    size_name: str = "video_size"
    units: str = "frames × pixels"
    frames: str = "num_frames"
    colours: str = "num_channels"
    repeats_frames: bool = False
    numbers_by_side: bool = False
    leaves_out: str = ""
    resizing: Callable[[Any, tuple[int, ...]], Any] | None = None

    def patch(self, config: Any) -> tuple[int, ...]:
        sides = image_size(config.patch_size)
        return (int(config.tubelet_size), *(sides if len(sides) == 2 else sides * 2))

    def channels(self, config: Any) -> int:
        return int(getattr(config, self.colours))

    def describe(self, size: tuple[int, ...]) -> str:
        return f"{size[0]} frames of {size[1]} × {size[2]} pixels"

    def typed(self, size: tuple[int, ...]) -> str:
        return f"{'x'.join(map(str, size[1:] if size[1] != size[2] else size[1:2]))} {FRAMES_FLAG} {size[0]}"

    @contextmanager
    def resized(self, base: Any, size: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        if self.resizing is None:
            yield {}
            return
        with self.resizing(base, size):
            yield {}

    @property
    def checks_processor(self) -> bool:
        return True

    def fields_of_size(self, size: tuple[int, ...]) -> dict[str, Any]:
        return {"long_image_size": list(size[-2:]), **({"long_num_frames": size[0]} if len(size) == len(self.axes) else {})}

    def enlarged(self, size: tuple[int, ...], pixels: tuple[int, ...] | None, frames: int | None) -> tuple[int, ...]:
        return (frames or size[0], *(pixels or size[1:]))

    def check_base(self, config: Any, arguments: Mapping[str, Any]) -> None:
        pixels = arguments.get(self.input)
        trained = self.sizes(config)[0]
        if not self.numbers_by_side or pixels is None or tuple(pixels.shape[-2:]) == trained[1:]:
            return
        size = self.size_of(pixels)
        raise GridError(
            f"transformers numbers the tokens of a frame by {self.side}={trained[1]}, so that in {self.describe(size)} they would have "
            f"other tokens' positions; convert the checkpoint for this size (longattn convert SRC DST --image-size {self.typed(size)}), "
            f"or give frames of {trained[1]} × {trained[2]} pixels."
        )

    def size_of(self, pixels: Tensor) -> tuple[int, ...]:
        return pixels.shape[FRAME_AXIS], *pixels.shape[-2:]

    def crop(self, pixels: Tensor, corner: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
        for axis, start, side in zip((FRAME_AXIS, -2, -1), corner, size, strict=True):
            pixels = pixels.narrow(axis, start, side)
        return pixels

    def sizes(self, config: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        sides = image_size(getattr(config, self.side))
        trained = (int(getattr(config, self.frames)), *(sides if len(sides) == 2 else sides * 2))
        pixels, frames = getattr(config, "long_image_size", None), getattr(config, "long_num_frames", None)
        return trained, self.enlarged(trained, None if pixels is None else image_size(pixels), frames)

    def arguments(self, config: Any, pixels: Tensor) -> dict[str, Any]:
        """The arguments of ``forward`` for ``pixels (B, channels, frames, height, width)``."""
        return {self.input: pixels.transpose(1, 2).contiguous()}

    def arguments_of_head(self, model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, with the predictor left out. A required mask of patches (VideoMAE's pre-training) leaves out every second one."""
        import torch

        parameters = inspect.signature(type(model).forward).parameters
        arguments = {**arguments, **({self.leaves_out: True} if self.leaves_out in parameters else {})}
        parameter = parameters.get(PATCH_MASK)
        if parameter is None or parameter.default is not parameter.empty or PATCH_MASK in arguments:
            return dict(arguments)
        pixels = arguments[self.input]
        cells = self.of_size(model.config, self.size_of(pixels)).cells
        mask = torch.arange(cells, device=pixels.device) % 2 == 1
        return {**arguments, PATCH_MASK: mask.expand(len(pixels), -1)}

    def of_size(self, config: Any, size: tuple[int, ...]) -> Grid:
        """The grid of a video of this many frames and pixels.

        Raises:
            GridError: there are fewer frames than in a tubelet, or tubelets or patches do not divide the size.
        """
        frames, tubelet = size[0], self.patch(config)[0]
        if self.repeats_frames and 0 < frames < tubelet:
            frames *= tubelet
        if frames < tubelet:
            raise GridError(f"A video has {_frames(frames)}, fewer than the {tubelet} of a tubelet; give at least {tubelet}.")
        if frames % tubelet:
            raise GridError(
                f"A video has {_frames(frames)}, which is not a multiple of the tubelet's {tubelet}; leave frames out, for example "
                f"read {frames - frames % tubelet}."
            )
        return super().of_size(config, (frames, *size[1:]))

    def of_input(self, config: Any, arguments: Mapping[str, Any]) -> Grid | tuple[Grid, ...] | None:
        pixels = arguments.get(self.input)
        if pixels is None:
            return None
        if pixels.dim() != len(self.axes) + 2:
            what = "an image" if pixels.dim() in (3, 4) else "no video"
            raise GridError(
                f"{self.input} has shape {tuple(pixels.shape)}, which is {what}; a video is (batch, frames, channels, height, width), for "
                f"example an image that stands still: pixels[:, None].repeat(1, {config.tubelet_size}, 1, 1, 1)."
            )
        if pixels.shape[CHANNEL_AXIS] != self.channels(config):
            raise GridError(
                f"{self.input} has shape {tuple(pixels.shape)}, but must be (batch, frames, channels, height, width) with "
                f"{self.channels(config)} channels; move the axes, for example with pixels.movedim(-1, 2)."
            )
        return super().of_input(config, arguments)


def _frames(count: int) -> str:
    return f"{count} frame{'s' if count != 1 else ''}"
