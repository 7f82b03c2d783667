"""The base class and the registry of implementations: each computes, from shared inputs, an output that can be verified and timed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_longattn.errors import LongAttentionError, OptionError, nearest

from .case import AttentionInputs, Case


class LeftOut(LongAttentionError):
    """An implementation that cannot run this case; the message is stored with the results."""


class Implementation(ABC):
    """Built once per case (what is built is not timed), then called many times.

    ``computes`` is what the result is checked against: ``"mechanism"`` (the definition of the case's mechanism), ``"full"`` (softmax
    over all keys) or nothing.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    computes: ClassVar[str] = "mechanism"
    leaves: Sequence[Tensor] = ()
    """Gradients are taken with respect to these when the backward pass is measured."""
    upstream: Tensor
    """The gradient of the output, of the output's shape."""
    gradients: tuple[Tensor, ...] = ()
    """With respect to ``leaves``, after a run with the backward pass."""

    @abstractmethod
    def forward(self) -> Tensor:
        """One forward pass."""

    def warm_up(self, backward: bool) -> None:
        """A pass after which lazy imports, compiled code and threads are there."""
        self.run(backward)

    def run(self, backward: bool) -> Tensor:
        """What is timed: the forward pass alone without a graph, or the forward and the backward pass."""
        if not backward:
            with torch.no_grad():
                return self.forward()
        output = self.forward()
        self.gradients = torch.autograd.grad(output, list(self.leaves), self.upstream)
        return output.detach()


_IMPLEMENTATIONS: dict[str, dict[str, type[Implementation]]] = {"attention": {}, "model": {}}


def register_implementation(kind: str, name: str) -> Callable[[type[Implementation]], type[Implementation]]:
    """Register an implementation for ``--against NAME``; ``kind`` is ``attention`` or ``model``. Each name is registered once."""

    def add(cls: type[Implementation]) -> type[Implementation]:
        if name in _IMPLEMENTATIONS[kind]:
            raise OptionError(f"There is already an implementation named {name!r} for {kind}; choose another name.")
        cls.name = name
        _IMPLEMENTATIONS[kind][name] = cls
        return cls

    return add


def list_implementations(kind: str) -> list[str]:
    """The names that ``--against`` takes for this kind."""
    return [name for name in _IMPLEMENTATIONS[kind] if not name.startswith("longattn")]


def build_implementation(kind: str, name: str, inputs: Any) -> Implementation:
    """Build one implementation over shared inputs.

    Raises:
        OptionError: for a name that is not registered.
        LeftOut: when the implementation cannot do this case.
    """
    if name not in _IMPLEMENTATIONS[kind]:
        known = ", ".join(list_implementations(kind))
        raise OptionError(f"There is no implementation {name!r} for `{kind}`; choose from {known}.{nearest(name, _IMPLEMENTATIONS[kind])}")
    return _IMPLEMENTATIONS[kind][name](inputs)  # type: ignore[call-arg]


def build_inputs(kind: str, case: Case) -> Any:
    """What all implementations of one kind share at one length. Registers that kind only: attention alone needs no model classes."""
    if kind == "attention":
        from . import attention  # noqa: F401

        return AttentionInputs(case)
    from .models.inputs import ModelInputs

    return ModelInputs(case)
