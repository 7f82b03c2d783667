"""A padding mask of frames in place of masks ``(frames, frames)``. Audio bases make the latter from it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.masking_utils import bidirectional_mask_function

from ...backend import longattn_mask


@dataclass(frozen=True)
class FramePadding:
    """Replaces the mask ``(B, 1, N, N)`` by the operations below. The base would make it from ``frames (B, N)``.

    mask: the padding mask that the attention function takes; ``None`` if all frames are real.
    """

    frames: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, frames: Tensor) -> FramePadding:
        """The padding of ``frames (B, N)``, True = real."""
        batch, length = frames.shape
        mask = longattn_mask(batch, length, length, mask_function=bidirectional_mask_function, attention_mask=frames)
        return cls(frames, mask)

    def unsqueeze(self, dim: int) -> FramePadding:
        return self

    def expand(self, *sizes: int) -> FramePadding:
        return self

    def transpose(self, first: int, second: int) -> FramePadding:
        return self

    def __and__(self, other: FramePadding) -> FramePadding:
        return self

    def int(self) -> Tensor:
        """``frames`` as numbers, for the output."""
        return self.frames.int()
