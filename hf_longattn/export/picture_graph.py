"""Picture models as one graph for one size and any batch size: the inputs for tracing, and for comparing the written file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs.grid import VerificationImages
from .graphs import Comparison, Int8Inputs, OnePassGraph, turned

COMPARED_BATCHES = (3, 1)
"""Batch sizes to compare."""
INT8_BATCHES = (6, 1)
"""Batch sizes for comparing an int8 copy, and for timing it."""


class PictureGraph(OnePassGraph):
    """A model as a function of pixels, patches or a spectrogram, and of the noise that its base would draw at random (ViT-MAE).

    pictures: the inputs for tracing and comparing. size: pixels along each axis.
    """

    advised = "window2d"

    def __init__(self, model: nn.Module, pictures: VerificationImages, size: tuple[int, ...]) -> None:
        arguments = pictures.rule.arguments(pictures.config, pictures.pixels(size))
        of_head = pictures.rule.arguments_of_head(model, arguments)
        arguments |= {name: value for name, value in of_head.items() if not isinstance(value, Tensor)}
        super().__init__(model, {name: value for name, value in arguments.items() if not isinstance(value, Tensor)})
        self.pictures, self.size = pictures, size
        self.names = tuple(name for name, value in arguments.items() if isinstance(value, Tensor))

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        noise: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
    ) -> dict[str, Tensor]:
        return self.run(pixel_values=pixel_values, input_values=input_values, noise=noise, pixel_values_videos=pixel_values_videos)

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.names

    def example(self, batch: int) -> dict[str, Tensor]:
        """A batch of one picture, with each copy rolled by another number of columns."""
        pixels = turned(self.pictures.pixels(self.size), batch, -1)
        arguments = self.pictures.rule.arguments(self.pictures.config, pixels)
        return {name: arguments[name] for name in self.names}

    def shortest_lengths(self, max_length: int) -> list[int]:
        """The number of tokens of the only size."""
        return [max_length]

    def traceable(self, shortest: int, max_length: int) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        example, batch = self.example(2), torch.export.Dim("batch", min=1)
        return example, {name: {0: batch} for name in example}

    def comparisons(self, limits: tuple[int, int]) -> Iterator[Comparison]:
        size = self.pictures.rule.describe(self.size)
        for batch in COMPARED_BATCHES:
            yield Comparison(self.example(batch), f"{batch} × {size}", {"batch": batch, "size": list(self.size)})

    def int8_inputs(self, limits: tuple[int, int]) -> Int8Inputs:
        compared, timed = INT8_BATCHES
        return Int8Inputs(self.example(compared), {"pictures": compared}, self.example(timed), {"pictures": timed})
