"""Where mechanisms stand: on their attention module, or on the one that several layers share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..mechanisms.base import Mechanism

ON = "long_attention"
"""The attribute of an attention module that holds its mechanism, or, where it serves several layers, theirs by number."""
CROSS_MECHANISM = "full"
"""Queries and keys of cross-attention come from different sequences, so that nearness between them means nothing."""
SERVED = "layers_served"
"""The attribute by which an attention module says which layers it serves, where those are several."""


@dataclass(frozen=True)
class AttentionSite:
    """The attention of one layer: its module, the layer's place in its stack, and whether it attends to another sequence.

    shared: whether the module serves other layers as well, each of which is a site of its own.
    """

    name: str
    module: nn.Module
    layer: int
    cross: bool
    shared: bool = False

    @property
    def decoding(self) -> bool:
        """Whether it is part of a decoder."""
        return bool(self.module.is_causal) or self.cross

    @property
    def mechanism_name(self) -> str:
        """The name of its mechanism, as a module of the model."""
        return f"{self.name}.{ON}.{self.layer}" if self.shared else f"{self.name}.{ON}"

    @property
    def mechanism(self) -> nn.Module:
        """What stands there."""
        owner, name = self._place
        return getattr(owner, name)

    def put(self, mechanism: nn.Module) -> None:
        """Put a mechanism there, in place of what stands there."""
        if self.shared and not isinstance(getattr(self.module, ON, None), nn.ModuleDict):
            setattr(self.module, ON, nn.ModuleDict())
        setattr(*self._place, mechanism)

    @property
    def _place(self) -> tuple[nn.Module, str]:
        return (getattr(self.module, ON), str(self.layer)) if self.shared else (self.module, ON)


def mechanisms_on(attention: nn.Module) -> dict[str, Mechanism]:
    """Name below an attention module -> mechanism; none on other modules."""
    found = getattr(attention, ON, None)
    if isinstance(found, nn.ModuleDict):
        return {f"{ON}.{layer}": one for layer, one in found.items() if isinstance(one, Mechanism)}
    return {ON: found} if isinstance(found, Mechanism) else {}
