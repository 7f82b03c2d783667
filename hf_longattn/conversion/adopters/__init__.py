"""Long models of other architectures, adopted into our families with equal outputs: one file per source architecture.

A module of this package that defines ``ADOPTER``, an :class:`~.base.Adopter`, is found automatically.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from ..sources.base import Source
from .base import Adopter, Move, Probe, layer_options

__all__ = ["Adopter", "Move", "Probe", "adopter_of", "adopters", "layer_options"]


@cache
def adopters() -> tuple[Adopter, ...]:
    """Every adopter, in the order of the file names."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return tuple(module.ADOPTER for module in modules if hasattr(module, "ADOPTER"))


def adopter_of(source: Source) -> Adopter | None:
    """The adopter that recognises a source; ``None`` when it is a plain model of a family, or unknown."""
    return next((adopter for adopter in adopters() if adopter.recognises(source)), None)
