"""Pictures and spectrograms as the audit replaces them: every patch has a number, which stands for its pixels, as a token's id stands for a
word; for its first pixels, where patches overlap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..engines.common.grid import Grid
from ..errors import LengthError, OptionError
from ..modeling.family.definition import family_of
from ..modeling.family.grid_rule import GridRule

DIFFERENT_PATCHES = 64
"""Number of patches from which pictures are made."""


class AuditPictures:
    """Pictures of the size for which a model was made, from the numbers of their patches."""

    def __init__(self, rule: GridRule, config: Any) -> None:
        self.rule, self.config = rule, config
        self.size = rule.sizes(config)[1]
        self.grid: Grid = rule.of_size(config, self.size)
        self.step, self.channels = rule.step(config), rule.channels(config)
        self.overlap = tuple(-(-side // step) - 1 for side, step in zip(rule.patch(config), self.step, strict=True))
        """How many patches before it read the pixels of a patch, along each axis."""
        generator = torch.Generator().manual_seed(0)
        self.values = torch.randn(DIFFERENT_PATCHES, self.channels, *self.step, generator=generator)
        self.numbers = torch.arange(DIFFERENT_PATCHES)

    @classmethod
    def of(cls, config: Any, *, length: int | None, url: str | None) -> AuditPictures | None:
        """The pictures of a Long model of pictures; ``None`` for any other model.

        Raises:
            LengthError, OptionError: a length, or a server, which are for texts.
        """
        rule = getattr(family_of(config), "grid", None) if getattr(config, "base_model_type", None) else None
        if rule is None:
            return None
        if rule.shapes is not None:
            raise OptionError(
                f"A {config.model_type!r} model takes patches that its processor cuts, which are not audited; look at "
                "hf_longattn.explain(model, inputs) instead."
            )
        pictures = cls(rule, config)
        if len(set(rule.layer_grids(config, pictures.grid))) > 1:
            raise OptionError(
                f"The layers of a {config.model_type!r} model are on different grids, which are not audited; look at "
                "hf_longattn.explain(model, inputs) instead."
            )
        if length is not None and length != pictures.grid.length:
            size = rule.describe(pictures.size)
            raise LengthError(f"A model of {rule.noun}s is audited at the size that it was made for, {size}; leave --length out.")
        if url is not None:
            raise OptionError(
                f"Servers of embeddings take texts, not {rule.noun}s; leave --url out, or give the model's graph: --onnx FILE."
            )
        return pictures

    @property
    def prefix(self) -> Tensor:
        """The tokens that are not made from pixels, ``(N,)`` bool."""
        return torch.arange(self.grid.length) < self.grid.prefix

    def inputs(self, numbers: Tensor) -> dict[str, Tensor]:
        """The model's input for the patches with ``numbers (N,)``; those of the prefix are ignored."""
        rank = self.grid.rank
        patches = self.values[numbers[self.grid.prefix :]].view(*self.grid.sizes, self.channels, *self.step)
        axes = [side for axis in range(rank) for side in (axis, rank + 1 + axis)]
        sides = [cells * step for cells, step in zip(self.grid.sizes, self.step, strict=True)]
        pixels = patches.permute(rank, *axes).reshape(1, self.channels, *sides)
        rest = [after - before for before, after in zip(sides, self.size, strict=True)]  # of the last patches
        padding = [side for after in reversed(rest) for side in (0, after)]
        return {self.rule.input: self.rule.arguments(self.config, nn.functional.pad(pixels, padding))[self.rule.input]}
