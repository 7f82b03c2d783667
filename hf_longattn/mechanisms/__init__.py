"""The attention mechanisms: one file each, with options, fast path and float64 definition."""

from ..options import Options, option
from .common.base import Mechanism
from .common.registry import (
    MechanismInfo,
    build_mechanism,
    check_options,
    list_mechanisms,
    mechanism_class,
    mechanism_info,
    register_mechanism,
)

__all__ = [
    "Mechanism",
    "MechanismInfo",
    "Options",
    "build_mechanism",
    "check_options",
    "list_mechanisms",
    "mechanism_class",
    "mechanism_info",
    "option",
    "register_mechanism",
]
