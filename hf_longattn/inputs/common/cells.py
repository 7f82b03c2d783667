"""How inputs are cut into cells. Each cell corresponds to one row of the last hidden state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from ...engines.common.grid import Grid


class InputCells(ABC):
    """How the inputs ``(B, …)`` of a model are cut into cells.

    grid: grid of the features: prefix tokens first, then the cells.
    axes: axes of one input, without the batch axis, along which it is cut. sides: length of a cell along each of these axes.
    tokens: number of tokens of one input in the layers.
    seconds: duration of a cell of sound; ``None`` for other inputs.
    """

    grid: Grid
    axes: tuple[int, ...]
    sides: tuple[int, ...]
    tokens: int
    seconds: float | None = None

    @abstractmethod
    def features(self, values: Tensor) -> Tensor:
        """The last hidden states ``(B, N, D)`` of the inputs."""

    def measuring(self) -> AbstractContextManager[None]:
        """Within this context, the model drops no part of its input at random."""
        return nullcontext()
