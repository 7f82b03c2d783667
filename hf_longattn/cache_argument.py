"""The name of the argument that holds the decode cache. It is ``cache`` since transformers 5.24, and ``past_key_values`` before."""

from __future__ import annotations

import importlib.metadata
from typing import Any

CACHE = "cache" if tuple(map(int, importlib.metadata.version("transformers").split(".")[:2])) >= (5, 24) else "past_key_values"
CACHES = ("cache", "past_key_values", "layer_past")
"""Names of the argument in models and in attention modules."""


def rename_cache(arguments: dict[str, Any]) -> None:
    """Give the cache among a call's keyword arguments its name in the installed version."""
    for name in ("cache", "past_key_values"):
        if name != CACHE and name in arguments:
            given = arguments.pop(name)
            arguments.setdefault(CACHE, given)


def take_cache(arguments: dict[str, Any]) -> Any:
    """Take the cache out of keyword arguments of an attention module, under any of its names."""
    return next((found for name in CACHES if (found := arguments.pop(name, None)) is not None), None)
