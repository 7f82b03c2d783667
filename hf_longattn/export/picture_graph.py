"""A model of pictures as one graph for pictures of one size and any batch: what is traced, and how the written file is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion.pictures import VerificationPictures
from ..conversion.report import Check
from .graphs import ExportedGraph, Runner, Traced, compare

COMPARED_BATCHES = (3, 1)
"""Numbers of pictures to compare."""


class PictureGraph(ExportedGraph):
    """A model as a function of its pixels, or of patches with what its base would draw, that returns a dictionary of tensors.

    pictures: on which it is traced and compared. size: pixels along each axis.
    """

    advised = "window2d"

    def __init__(self, model: nn.Module, pictures: VerificationPictures, size: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.pictures, self.size = model, pictures, size
        arguments = pictures.rule.arguments(pictures.config, pictures.pixels(size))
        self.names = tuple(name for name, value in arguments.items() if isinstance(value, Tensor))
        self.fixed = {name: value for name, value in arguments.items() if name not in self.names}

    def forward(self, pixel_values: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        inputs = dict(zip(self.names, (pixel_values, noise), strict=False))
        returned = self.model(**inputs, **self.fixed, return_dict=True)
        return dict(named_tensors(returned))

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.names

    def example(self, batch: int) -> dict[str, Tensor]:
        """A picture, turned by another number of columns in each row of the batch."""
        pixels = self.pictures.pixels(self.size)
        turned = torch.cat([pixels.roll(number * self.size[-1] // batch, -1) for number in range(batch)])
        arguments = self.pictures.rule.arguments(self.pictures.config, turned)
        return {name: arguments[name] for name in self.names}

    def traced(self, max_length: int) -> Traced:
        example, batch = self.example(2), torch.export.Dim("batch", min=1)
        program = torch.export.export(self, (), kwargs=example, dynamic_shapes={name: {0: batch} for name in example})
        return Traced(program, example, self.inputs, tuple(self(**example)), max_length)

    def check(self, load: Callable[[], Runner], limits: tuple[int, int]) -> list[Check]:
        """As :meth:`ExportedGraph.check`, for each of ``COMPARED_BATCHES``."""
        run = load()
        return [self._compared(run, batch) for batch in COMPARED_BATCHES]

    def _compared(self, run: Runner, batch: int) -> Check:
        inputs = self.example(batch)
        with torch.no_grad():
            expected = self(**inputs)
        shape = f"{batch} × {self.pictures.rule.describe(self.size)}"
        values: dict[str, Any] = {"batch": batch, "size": list(self.size)}
        return compare(run, inputs, expected, shape, values, lambda output: ...)


class SpectrogramGraph(PictureGraph):
    """A model as a function of its spectrogram ``(B, frames, mel bins)``."""

    def forward(self, input_values: Tensor) -> dict[str, Tensor]:  # type: ignore[override]  # whose name is the graph's
        return super().forward(input_values)


def named_tensors(outputs: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an output by name, those of a tuple with their number, as a backbone's maps."""
    for name, value in outputs.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple):
            yield from ((f"{name}.{number}", tensor) for number, tensor in enumerate(value))
