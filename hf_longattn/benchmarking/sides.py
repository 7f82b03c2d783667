"""A side of a comparison: something that computes, from shared inputs, what can be checked and timed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import LongAttentionError, OptionError, nearest


class SideLeftOut(LongAttentionError):
    """This side cannot do this case; the message says why and goes into the results."""


class Side(ABC):
    """Built once per case (what is built is not timed), then called many times.

    ``opponent`` names the one of our own sides that does the same work from the same inputs; ``computes`` is what the
    result is checked against: ``"mechanism"`` (the definition of the case's mechanism), ``"full"`` (softmax over all keys) or
    ``"band"`` (the mechanism's window without its global tokens).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    opponent: ClassVar[str] = "longattn"
    computes: ClassVar[str] = "mechanism"
    leaves: Sequence[Tensor] = ()
    """What gradients are taken of when the backward pass is measured."""
    upstream: Tensor
    """The gradient of the output, of the output's shape."""
    gradients: tuple[Tensor, ...] = ()
    """Those of ``leaves``, after a run with the backward pass."""

    @abstractmethod
    def forward(self) -> Tensor:
        """One forward pass."""

    def run(self, backward: bool) -> Tensor:
        """What is timed: the forward pass alone without a graph, or the forward and the backward pass."""
        if not backward:
            with torch.no_grad():
                return self.forward()
        output = self.forward()
        self.gradients = torch.autograd.grad(output, list(self.leaves), self.upstream)
        return output.detach()


_SIDES: dict[str, dict[str, type[Side]]] = {"attention": {}, "model": {}}


def register_side(kind: str, name: str) -> Callable[[type[Side]], type[Side]]:
    """Register a side for ``--against NAME``; ``kind`` is ``attention`` or ``model``. A name is given once."""

    def add(cls: type[Side]) -> type[Side]:
        if name in _SIDES[kind]:
            raise OptionError(f"There is already a side named {name!r} for {kind}; choose another name.")
        cls.name = name
        _SIDES[kind][name] = cls
        return cls

    return add


def list_sides(kind: str) -> list[str]:
    """The names that ``--against`` takes for this kind."""
    return [name for name in _SIDES[kind] if not name.startswith("longattn")]


def build_side(kind: str, name: str, inputs: Any) -> Side:
    """Build one side over shared inputs.

    Raises:
        OptionError: for a name that is not registered.
        SideLeftOut: when the side cannot do this case.
    """
    if name not in _SIDES[kind]:
        known = ", ".join(list_sides(kind))
        raise OptionError(f"There is no side {name!r} for `{kind}`; choose from {known}.{nearest(name, _SIDES[kind])}")
    return _SIDES[kind][name](inputs)  # type: ignore[call-arg]
