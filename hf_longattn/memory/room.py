"""Tensors that grow at the end without being copied at every step."""

from __future__ import annotations

import torch
from torch import Tensor

SPARE = 1 / 8
"""Share by which a buffer is larger than what it holds when it is made; the cost of a copy is spread over so many new tokens."""
LEAST = 64
"""Smallest spare room, in tokens."""


class Room:
    """The buffers behind tensors ``(B, H, N, …)`` that grow along N."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def grown(self, name: str, held: Tensor, length: int) -> Tensor:
        """``held`` with ``length`` tokens, in the same memory where that has room. Those behind its own hold any finite numbers.

        ``held`` must be what this room gave under ``name``, or any other tensor, which is then copied.
        """
        buffer = self._buffers.get(name)
        if buffer is None or not self._behind(held, buffer) or buffer.shape[2] < length:
            size = length + max(LEAST, int(length * SPARE))
            buffer = held.new_zeros(*held.shape[:2], size, *held.shape[3:])
            kept = min(held.shape[2], length)
            buffer[:, :, :kept] = held[:, :, :kept]
            self._buffers[name] = buffer
        return buffer[:, :, :length]

    @staticmethod
    def _behind(held: Tensor, buffer: Tensor) -> bool:
        """Whether ``held`` is the beginning of ``buffer``, which may be written to."""
        same = held.data_ptr() == buffer.data_ptr() and held.stride() == buffer.stride() and held.shape[:2] == buffer.shape[:2]
        return same and (torch.is_inference_mode_enabled() or not buffer.is_inference())

    def clear(self) -> None:
        """Forget the buffers; tensors that were given stay valid."""
        self._buffers.clear()
