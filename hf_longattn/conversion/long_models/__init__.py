"""Long models of other architectures, adopted into our families with equal outputs: one file per source architecture.

A module of this package that defines ``CONVERTER``, an :class:`~.base.CheckpointConverter`, is found automatically.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from ..sources.base import Source
from .base import CheckpointConverter, Probe, WeightRenaming, layer_options

__all__ = ["CheckpointConverter", "WeightRenaming", "Probe", "converter_of", "checkpoint_converters", "layer_options"]


@cache
def checkpoint_converters() -> tuple[CheckpointConverter, ...]:
    """Every converter, in the order of the file names."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return tuple(module.CONVERTER for module in modules if hasattr(module, "CONVERTER"))


def converter_of(source: Source) -> CheckpointConverter | None:
    """The converter that recognises a source; ``None`` when it is a plain model of a family, or unknown."""
    return next((converter for converter in checkpoint_converters() if converter.recognises(source)), None)
