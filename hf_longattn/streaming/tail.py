"""A buffer for the last tokens of a sequence that arrives in pieces."""

from __future__ import annotations

import torch
from torch import Tensor


class Tail:
    """The tokens of a growing sequence from index ``start`` on, along axis ``dim``.

    tensor: the tokens; ``None`` before the first piece.
    """

    def __init__(self, dim: int) -> None:
        self.dim, self.start = dim, 0
        self.tensor: Tensor | None = None

    @property
    def stop(self) -> int:
        """Number of tokens of the sequence so far, including dropped ones."""
        return self.start + (0 if self.tensor is None else self.tensor.shape[self.dim])

    def append(self, piece: Tensor) -> None:
        self.tensor = piece if self.tensor is None else torch.cat([self.tensor, piece], self.dim)

    def between(self, first: int, stop: int) -> Tensor:
        """A view of the tokens ``first`` to ``stop - 1``."""
        assert self.tensor is not None
        return self.tensor.narrow(self.dim, first - self.start, stop - first)

    def drop(self, first: int) -> None:
        """Drop the tokens before index ``first``. The others are copied, which frees memory."""
        if self.tensor is not None and first > self.start:
            self.tensor = self.between(first, self.stop).clone()
            self.start = first

    def load(self, tensor: Tensor | None, start: int) -> None:
        self.tensor, self.start = tensor, start
