"""A model of pictures as one graph for pictures of one size and any batch: what is traced, and how the written file is compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion.pictures import PIXELS, VerificationPictures
from ..conversion.report import Check
from .graphs import ExportedGraph, Runner, Traced, compare

COMPARED_BATCHES = (3, 1)
"""Numbers of pictures to compare."""


class PictureGraph(ExportedGraph):
    """A model as a function of its pixels that returns a dictionary of tensors.

    pictures: on which it is traced and compared. size: pixels along each axis.
    """

    advised = "window2d"

    def __init__(self, model: nn.Module, pictures: VerificationPictures, size: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.pictures, self.size = model, pictures, size

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        returned = self.model(**{self.pictures.rule.input: pixel_values}, return_dict=True)
        return {name: value for name, value in returned.items() if isinstance(value, Tensor)}

    @property
    def inputs(self) -> tuple[str, ...]:
        return (PIXELS,)

    def example(self, batch: int) -> dict[str, Tensor]:
        """Parts of a picture, each turned by another number of columns: ``(batch, channels, height, width)``."""
        (pixels,) = self.pictures.at(self.size).values()
        return {PIXELS: torch.cat([pixels.roll(number * self.size[-1] // batch, -1) for number in range(batch)])}

    def traced(self, max_length: int) -> Traced:
        example = self.example(2)
        program = torch.export.export(self, (), kwargs=example, dynamic_shapes={PIXELS: {0: torch.export.Dim("batch", min=1)}})
        return Traced(program, example, self.inputs, tuple(self(**example)), max_length)

    def check(self, load: Callable[[], Runner], limits: tuple[int, int]) -> list[Check]:
        """As :meth:`ExportedGraph.check`, for each of ``COMPARED_BATCHES``."""
        run = load()
        return [self._compared(run, batch) for batch in COMPARED_BATCHES]

    def _compared(self, run: Runner, batch: int) -> Check:
        inputs = self.example(batch)
        with torch.no_grad():
            expected = self(**inputs)
        shape = f"{batch} × {' × '.join(map(str, self.size))} pixels"
        values: dict[str, Any] = {"batch": batch, "size": list(self.size)}
        return compare(run, inputs, expected, shape, values, lambda output: ...)
