"""The sizes of source and result where a model reads an input on a grid, such as a picture, and not a text."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from ..engines.common.grid import Grid
from ..errors import GridError
from ..modeling.family.grid_rule import IMAGE_SIZE, INTERPOLATE_ARGUMENT, GridRule, image_size

SIZE = re.compile(r"\d{1,6}(?:[x×]\d{1,6})*")
"""A size on the command line: 1024, or 768x1024."""


@dataclass(frozen=True)
class GridSize:
    """An input of ``size`` pixels along each axis, the grid of its tokens, that of every layer, and the size in words.

    size_name: what the size is called in reports.
    """

    size: tuple[int, ...]
    grid: Grid
    layers: tuple[Grid, ...]
    words: str = ""
    size_name: str = IMAGE_SIZE
    unit: ClassVar[str] = "tokens"

    @classmethod
    def of(cls, rule: GridRule, config: Any, size: tuple[int, ...]) -> GridSize:
        """An input of a model with this config.

        Raises:
            GridError: an axis is not a multiple of the patch.
        """
        grid = rule.of_size(config, size)
        return cls(size, grid, tuple(rule.layer_grids(config, grid)), rule.describe(size), rule.size_name)

    def describe(self) -> str:
        """For example "224 × 224 pixels, 197 tokens"."""
        return f"{self.words}, {self.tokens:,} {self.unit}"

    @property
    def tokens(self) -> int:
        """The tokens of the input, with those before the grid."""
        return self.grid.length

    @property
    def typed(self) -> str:
        """The size as it is typed."""
        return size_text(self.size)

    @property
    def values(self) -> dict[str, Any]:
        """The size for a report, JSON-serialisable."""
        return {self.size_name: list(self.size), "tokens": self.tokens}


@dataclass(frozen=True)
class GridPlan:
    """The largest input of source and result."""

    rule: GridRule
    old: GridSize
    new: GridSize
    size_noun: ClassVar[str] = "size"
    smaller: ClassVar[str] = "smaller"

    @classmethod
    def of(cls, rule: GridRule, config: Any) -> GridPlan:
        """The sizes for which the position table of a model with this config was trained, and for which it was converted."""
        trained, converted = rule.sizes(config)
        return cls(rule, GridSize.of(rule, config, trained), GridSize.of(rule, config, converted))

    @property
    def noun(self) -> str:
        """What an input is called."""
        return self.rule.noun

    @property
    def resizing(self) -> str:
        """How the base reads larger inputs than its position table's; empty for one without positions."""
        if not self.rule.has_positions:
            return ""
        if self.rule.counts_places:
            return "places counted on its grid"
        return f"{INTERPOLATE_ARGUMENT}=True" if self.rule.interpolates else "its resized position table"

    def resized(self, base: Any, size: GridSize) -> AbstractContextManager[dict[str, Any]]:
        """The base of transformers below its head reads larger inputs of this size, with these arguments."""
        return self.rule.resized(base, size.size)

    @property
    def grows(self) -> bool:
        return self.new.size != self.old.size

    def steps(self, config: Any) -> list[GridSize]:
        """The sizes that a plan lists: the old one of a model with this config, its doublings, and the new one."""
        sizes = [self.old.size]
        while sizes[-1] != self.new.size:
            sizes.append(tuple(min(2 * pixels, last) for pixels, last in zip(sizes[-1], self.new.size, strict=True)))
        return [GridSize.of(self.rule, config, size) for size in sizes]

    def doublings(self, config: Any, count: int = 4) -> list[GridSize]:
        """Sizes at which mechanisms are compared: the old one of a model with this config, and its doublings."""
        sizes = [self.old.size]
        while len(sizes) < count:
            sizes.append(self.rule.doubled(sizes[-1]))
        return [GridSize.of(self.rule, config, size) for size in sizes]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            f"old_{self.rule.size_name}": list(self.old.size),
            f"new_{self.rule.size_name}": list(self.new.size),
            "old_grid": list(self.old.grid.sizes),
            "new_grid": list(self.new.grid.sizes),
            "prefix_tokens": self.new.grid.prefix,
        }


def pixels(size: tuple[int, ...]) -> str:
    """For example "768 × 1024 pixels"."""
    return f"{' × '.join(map(str, size))} pixels"


def size_text(size: tuple[int, ...]) -> str:
    """A size as it is typed: "1024", or "768x1024"."""
    return "x".join(map(str, size if len(set(size)) > 1 else size[:1]))


def read_size(size: Any, axes: int = 2) -> tuple[int, ...]:
    """A size in pixels from a number, text such as "768x1024", or numbers.

    Raises:
        GridError: none of these, or another number of axes.
    """
    if isinstance(size, str):
        text = size.strip().lower()
        if not SIZE.fullmatch(text):
            raise GridError(f"An image size is {size!r:.40}, but must be pixels, or height and width: 1024, or 768x1024.")
        numbers = [int(number) for number in re.split("[x×]", text)]
        size = numbers if len(numbers) > 1 else numbers[0]
    sizes = image_size(size)
    if len(sizes) != axes:
        raise GridError(f"An image size is {' × '.join(map(str, sizes))}, but must have {axes} numbers at most: 1024, or 768x1024.")
    return sizes
