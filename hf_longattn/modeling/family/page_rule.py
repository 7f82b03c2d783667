"""Arguments that models of pages read for each token. Besides its id, for example its place on the page."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import PageError
from .input_rule import InputRule

if TYPE_CHECKING:
    from torch import Tensor

BOX_LIMIT = 1000
"""Width and height of every page, in the units of boxes."""
BOX_SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class PageArgument(ABC):
    """An argument of ``forward`` with whole numbers ``(B, N, width)`` for each token.

    name: the argument's name in ``forward``.
    """

    name: str
    noun: ClassVar[str]
    """The word for a token's numbers in messages."""

    @abstractmethod
    def width(self, config: Any) -> int:
        """How many numbers each token has."""

    @abstractmethod
    def largest(self, config: Any) -> int:
        """The largest number that the model takes. The smallest is 0."""

    def fill(self, config: Any) -> int:
        """The number for tokens without a place: padding, and memory tokens."""
        return 0

    def seeded(self, config: Any, rows: int, length: int) -> Tensor:
        """Fixed random numbers ``(rows, length, width)`` int64."""
        import torch

        random = torch.Generator().manual_seed(0)
        return torch.randint(self.largest(config) + 1, (rows, length, self.width(config)), generator=random)

    def check(self, config: Any, values: Tensor, shape: tuple[int, int]) -> None:
        """Raise :class:`PageError` unless ``values`` are valid numbers for tokens of ``shape (B, N)``."""
        from ...engines.common.batch import in_graph

        expected = (*shape, self.width(config))
        if tuple(values.shape) != expected or values.is_floating_point() or values.is_complex():
            raise PageError(
                f"{self.name} has shape {tuple(values.shape)} and dtype {values.dtype}, but must be integers (batch, tokens, "
                f"{expected[2]}) = {expected}, the {self.noun} of every token."
            )
        if not in_graph():
            self.check_values(config, values)

    def check_values(self, config: Any, values: Tensor) -> None:
        """Raise :class:`PageError` for integers ``(B, N, width)`` that the model does not take."""
        self.check_range(values, self.largest(config))

    def check_range(self, values: Tensor, limit: int) -> None:
        """Raise :class:`PageError` for numbers below 0 or above ``limit``."""
        outside = ((values < 0) | (values > limit)).any(-1)
        if bool(outside.any()):
            raise PageError(f"{self.name} has the {self.noun} {values[outside][0].tolist()}, {self.advice(limit)}.")

    @abstractmethod
    def advice(self, limit: int) -> str:
        """The second half of the error message for numbers beyond ``limit``. What is wrong, and what to give instead."""


@dataclass(frozen=True)
class Boxes(PageArgument):
    """The box of every token, ``(left, top, right, bottom)``. From 0 to 1,000 on its own page, whatever the page's size (LayoutLM)."""

    name: str = "bbox"
    noun: ClassVar[str] = "box"

    def width(self, config: Any) -> int:
        return len(BOX_SIDES)

    def largest(self, config: Any) -> int:
        return min(BOX_LIMIT, config.max_2d_position_embeddings - 1)

    def seeded(self, config: Any, rows: int, length: int) -> Tensor:
        import torch

        corners = super().seeded(config, rows, length).unflatten(-1, (2, 2))
        return torch.cat([corners.amin(-2), corners.amax(-2)], -1)

    def check_values(self, config: Any, values: Tensor) -> None:
        check_boxes(self.name, values, self.largest(config))

    def advice(self, limit: int) -> str:
        return (
            f"but sides lie from 0 to {limit}; divide pixels by the width and height of their page and multiply them by {limit}, "
            "page by page"
        )


def check_boxes(name: str, boxes: Tensor, limit: int = BOX_LIMIT) -> None:
    """Raise :class:`PageError` for integer boxes ``(…, 4)`` outside the page. Or with sides in the wrong order.

    Args:
        name: the boxes' name in messages.
    """
    rule = Boxes(name)
    rule.check_range(boxes, limit)
    reversed_axes = boxes[..., 2:] < boxes[..., :2]
    if bool(reversed_axes.any()):
        box = boxes[reversed_axes.any(-1)][0].tolist()
        axis = 0 if box[2] < box[0] else 1
        raise PageError(
            f"{name} has the box {box}, whose {BOX_SIDES[axis + 2]} side lies before its {BOX_SIDES[axis]} one; "
            f"give ({', '.join(BOX_SIDES)})."
        )


@dataclass(frozen=True)
class TreePaths(PageArgument):
    """Each token's path in the tree of a web page, from the root. One number per level, padded to the maximum depth (MarkupLM).

    limit: the config's field with the number of different values, which start at 0.
    padding: the config's field with the number for levels below the token.
    """

    limit: str
    padding: str
    noun: ClassVar[str] = "path"

    def width(self, config: Any) -> int:
        return int(config.max_depth)

    def largest(self, config: Any) -> int:
        return int(getattr(config, self.limit)) - 1

    def fill(self, config: Any) -> int:
        return int(getattr(config, self.padding))

    def advice(self, limit: int) -> str:
        return f"but numbers lie from 0 to {limit}; make paths by the checkpoint's own MarkupLMProcessor"


@dataclass(frozen=True)
class PageRule(InputRule):
    """The arguments of ``forward`` with numbers for each token. None in a model of plain text."""

    reads = "text"
    flash_windows = True
    arguments: tuple[PageArgument, ...] = ()

    @property
    def kind(self) -> str:
        return "page" if self.arguments else "text"

    def entry_problem(self, family: Any, fields: Collection[str]) -> str | None:
        stated = family.rope or family.relative or family.no_positions or family.position_tables
        if stated or "max_position_embeddings" not in fields:
            return None
        return (
            f"{family.config_class.__name__} has max_position_embeddings, but the entry does not say where positions are; give "
            r"position_tables=(PositionTable(r'position_embeddings\.weight$'),), or rope=True for rotary ones."
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(argument.name for argument in self.arguments)

    def fill(self, config: Any, name: str) -> int:
        return next((argument.fill(config) for argument in self.arguments if argument.name == name), 0)

    def seeded(self, config: Any, rows: int, length: int) -> dict[str, Tensor]:
        """Fixed random values of every argument, for ``(rows, length)`` tokens."""
        return {argument.name: argument.seeded(config, rows, length) for argument in self.arguments}

    def check_tokens(self, config: Any, arguments: Mapping[str, Any], shape: tuple[int, int]) -> None:
        for argument in self.arguments:
            if (values := arguments.get(argument.name)) is not None:
                argument.check(config, values, shape)


PLAIN_TEXT = PageRule()
"""The rule of models that read only token ids."""
BOXES = PageRule((Boxes(),))
MARKUP_PATHS = PageRule(
    (
        TreePaths("xpath_tags_seq", "max_xpath_tag_unit_embeddings", "tag_pad_id"),
        TreePaths("xpath_subs_seq", "max_xpath_subs_unit_embeddings", "subs_pad_id"),
    )
)
