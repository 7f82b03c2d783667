"""Former names of :mod:`hf_longattn.inspect`, until 0.4."""

from __future__ import annotations

from .lazy import public_names

__getattr__, __all__ = public_names(__name__, {})
