"""The argument that holds the decode cache. transformers renamed it from ``past_key_values`` to ``cache`` in version 5.24."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from typing import Any

from transformers import Cache

CACHE, OTHER_CACHE = "cache", "past_key_values"
if tuple(map(int, importlib.metadata.version("transformers").split(".")[:2])) < (5, 24):
    CACHE, OTHER_CACHE = OTHER_CACHE, CACHE
"""Name of the argument of models, and of the field of their outputs, in the installed version; and its name in other versions."""


def rename_cache(arguments: dict[str, Any]) -> None:
    """Give the cache among a model's keyword arguments, which has its other name, that of the installed version.

    The base refuses two caches."""
    if arguments.get(CACHE) is None:
        arguments[CACHE] = arguments.pop(OTHER_CACHE)


def find_cache(values: Iterable[Any]) -> Any:
    """The cache among the arguments of an attention module, or ``None``. Modules call it by several names, so its type tells."""
    return next((value for value in values if isinstance(value, Cache)), None)


def take_cache(arguments: dict[str, Any]) -> Any:
    """Take the cache, or ``None`` in its place, out of the keyword arguments of an attention module."""
    cache = find_cache(arguments.values())
    for name in (CACHE, OTHER_CACHE):
        arguments.pop(name, None)
    return cache
