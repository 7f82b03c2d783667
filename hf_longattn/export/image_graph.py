"""Image models as one graph for any batch size and, with windows, many sizes: the inputs for tracing and for comparing the written file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion.architectures import attached_mechanisms
from ..inputs.grid import VerificationImages
from ..modeling.family.grid_rule import INTERPOLATE_ARGUMENT
from .graphs import Comparison, ExportedGraph, Int8Inputs, turned

COMPARED_BATCHES = (3, 1)
"""Batch sizes to compare."""
INT8_BATCHES = (6, 1)
"""Batch sizes for comparing an int8 copy, and for timing it."""


class ImageGraph(ExportedGraph):
    """A model as a function of pixels, patches or a spectrogram, and of the noise that its base would draw at random (ViT-MAE).

    images: the inputs for tracing and comparing. size: pixels along each axis.
    step: a graph of several sizes takes heights and widths that are multiples of it, from two on; 0 if the graph takes one size.
    """

    advised = "window2d"

    def __init__(self, model: nn.Module, images: VerificationImages, size: tuple[int, ...]) -> None:
        arguments = images.rule.arguments(images.config, images.pixels(size))
        super().__init__(model, {name: value for name, value in arguments.items() if not isinstance(value, Tensor)})
        self.images, self.size = images, size
        self.names = tuple(name for name, value in arguments.items() if isinstance(value, Tensor))
        of_pixels = self.names == ("pixel_values",) and len(size) == 2 and arguments["pixel_values"].dim() == 4
        self.step = self._step() if of_pixels else 0
        if self.step and images.rule.interpolates:
            self.fixed[INTERPOLATE_ARGUMENT] = True

    def _step(self) -> int:
        """Pixels after which windows and tiled positions begin anew along both axes. 0 if the graph is of one size: some mechanism's is, or
        ``size`` has no multiples from two on below it."""
        steps = [mechanism.graph_steps for mechanism in attached_mechanisms(self.model).values()]
        if None in steps:
            return 0
        config, rule = self.images.config, self.images.rule
        tiled = rule.of_size(config, rule.sizes(config)[0]).sizes if config.position_extension == "tile" else ()
        pixels = math.lcm(*tiled, *(cells for step in steps for cells in step or ())) * math.lcm(*rule.patch(config))
        return pixels if all(side % pixels == 0 and side > 2 * pixels for side in self.size) else 0

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
    ) -> dict[str, Tensor]:
        return self.run(pixel_values=pixel_values, input_values=input_values)

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.names

    def example(self, batch: int, size: tuple[int, ...] | None = None) -> dict[str, Tensor]:
        """A batch of one image, with each copy rolled by another number of columns."""
        pixels = turned(self.images.pixels(size or self.size), batch, -1)
        arguments = self.images.rule.arguments(self.images.config, pixels)
        return {name: arguments[name] for name in self.names}

    def tokens(self, size: tuple[int, ...]) -> int:
        """The tokens of an image of this size."""
        return self.images.rule.of_size(self.images.config, size).length

    def shortest_lengths(self, max_length: int) -> list[int]:
        """The tokens of the least size of a graph of several, and of the only size."""
        return [*([self.tokens(self.least)] if self.step else []), max_length]

    @property
    def least(self) -> tuple[int, ...]:
        """The least size of a graph of several."""
        return (2 * self.step, 2 * self.step)

    def traceable(self, shortest: int, max_length: int) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        example, batch = self.example(2), torch.export.Dim("batch", min=1)
        sizes: dict[str, dict[int, Any]] = {name: {0: batch} for name in example}
        if shortest < max_length:
            for axis, (name, side) in enumerate(zip(("height", "width"), self.size, strict=True), 2):
                sizes["pixel_values"][axis] = self.step * torch.export.Dim(f"{name}_steps", min=2, max=side // self.step)
        return example, sizes

    def comparisons(self, limits: tuple[int, int]) -> Iterator[Comparison]:
        for number, batch in enumerate(COMPARED_BATCHES):
            size = self.least if number and limits[0] < limits[1] else self.size
            values = {"batch": batch, "size": list(size)}
            yield Comparison(self.example(batch, size), f"{batch} × {self.images.rule.describe(size)}", values)

    def int8_inputs(self, limits: tuple[int, int]) -> Int8Inputs:
        compared, timed = INT8_BATCHES
        return Int8Inputs(self.example(compared), {"images": compared}, self.example(timed), {"images": timed})
