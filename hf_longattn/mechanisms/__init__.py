"""The attention mechanisms: one file each, with options, fast path and float64 definition. Imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import public_names

if TYPE_CHECKING:
    from .common.base import Mechanism as Mechanism
    from .common.options import Options as Options
    from .common.options import option as option
    from .common.registry import MechanismInfo as MechanismInfo
    from .common.registry import build_mechanism as build_mechanism
    from .common.registry import check_options as check_options
    from .common.registry import list_mechanisms as list_mechanisms
    from .common.registry import mechanism_class as mechanism_class
    from .common.registry import mechanism_info as mechanism_info
    from .common.registry import register_mechanism as register_mechanism

__getattr__, __all__ = public_names(__name__)
