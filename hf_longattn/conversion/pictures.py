"""Inputs to verify a model with whose input lies on a grid: a photograph at any size, or a seeded input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..data.photographs import NAMES, photographs
from ..modeling.family.grid_rule import GridRule
from .grid_sizes import GridSize
from .processors import processor_of

COLOURS = 3


class VerificationPictures:
    """Inputs of any size for a model with this rule.

    Args:
        rule, config: of the model's grid, and of the model.
        mean, std: by which the source's image processor normalises each colour; ``None`` is 0.5.
    """

    def __init__(self, rule: GridRule, config: Any, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        self.rule, self.config = rule, config
        self.mean, self.std = mean or [0.5] * COLOURS, std or [0.5] * COLOURS
        reads_colours = rule.reads_photographs and rule.channels(config) == COLOURS == len(self.mean) == len(self.std)
        self.photographs = photographs() if reads_colours else ()
        self.why_seeded = "scikit-learn is not installed" if reads_colours else f"the model does not read {rule.noun}s of three colours"

    def at(self, size: GridSize) -> dict[str, Any]:
        """The arguments of a model for one input of this size."""
        return self.rule.arguments(self.config, self.pixels(size.size))

    def pixels(self, size: tuple[int, ...]) -> Tensor:
        """One input ``(1, channels, …)`` of this many pixels along each axis."""
        if not self.photographs:
            return self.rule.seeded(self.config, size)
        resized = interpolate(self.photographs[0][None].float() / 255, size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values).view(1, COLOURS, 1, 1) for values in (self.mean, self.std))
        return (resized - mean) / std

    def describe(self) -> str:
        """What the inputs are, for a report."""
        moved = "" if self.rule.reads_pictures else ", moved from frame to frame"
        seeded = f"seeded {self.rule.noun}s, since {self.why_seeded}"
        return f"scikit-learn's photograph {NAMES[0]}{moved}" if self.photographs else seeded


class VerificationVideos(VerificationPictures):
    """Inputs of any size for a model that reads videos: a photograph that moves by a pixel from frame to frame."""

    def pixels(self, size: tuple[int, ...]) -> Tensor:
        """One input ``(1, channels, frames, height, width)``."""
        if not self.photographs:
            return self.rule.seeded(self.config, size)
        frames, height, width = size
        photograph = super().pixels((height + frames - 1, width + frames - 1))
        return torch.stack([photograph[..., at : at + height, at : at + width] for at in range(frames)], 2)


class VerificationSpectrograms(VerificationPictures):
    """Seeded inputs of any length for a model that reads spectrograms."""

    def describe(self) -> str:
        return "seeded spectrograms"


def inputs_on_grid(rule: GridRule, config: Any, folder: Path) -> VerificationPictures:
    """The inputs to verify a model with; ``folder`` has its image processor, if it has one."""
    if not rule.reads_photographs:
        return VerificationSpectrograms(rule, config)
    processor = processor_of(rule, folder)
    mean, std = (getattr(processor, name, None) for name in ("image_mean", "image_std"))
    return (VerificationPictures if rule.reads_pictures else VerificationVideos)(rule, config, mean, std)
