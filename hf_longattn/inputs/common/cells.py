"""How inputs are cut into cells, one for each place of the features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from ...engines.common.grid import Grid


class InputCells(ABC):
    """How the inputs ``(B, …)`` of a model are cut into cells.

    grid: of the features, which are those of the cells after those of prefix tokens.
    axes: of one input, along which cells lie. sides: of a cell, along these.
    tokens: of one input, in the layers.
    seconds: of a cell of sound; ``None`` for other inputs.
    """

    grid: Grid
    axes: tuple[int, ...]
    sides: tuple[int, ...]
    tokens: int
    seconds: float | None = None

    @abstractmethod
    def features(self, values: Tensor) -> Tensor:
        """The last hidden states ``(B, N, D)`` of inputs."""

    def measuring(self) -> AbstractContextManager[None]:
        """Within the context, features depend on all of an input."""
        return nullcontext()
