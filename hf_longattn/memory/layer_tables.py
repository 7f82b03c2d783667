"""Our entries in transformers' tables of cache layers: a name in ``config.layer_types``, and what makes a layer of it.

A name holds what the layer is told (``longattn_window_512``), since transformers passes nothing else on. What stands in the tables makes an
instance of an ordinary class, so that caches can be pickled and loaded by any process; and only the names asked for last stand there,
however many widths a process goes through. A config asks for its names whenever a cache is made from it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from transformers import cache_utils

from ..errors import BackendError

MOST = 1024
"""Names that stand in the tables at a time."""
_entered: OrderedDict[str, None] = OrderedDict()
_lock = threading.Lock()


def enter_layer_type(name: str, growing: Callable[..., Any], static: Callable[..., Any]) -> str:
    """Let ``DynamicCache`` build layers called ``name`` with ``growing``, and ``StaticCache`` with ``static``; returns the name."""
    tables = _tables()
    with _lock:
        if name in _entered:
            _entered.move_to_end(name)
            return name
        _entered[name] = None
        for table, make in zip(tables, (growing, static), strict=True):
            table[name] = make
        while len(_entered) > MOST:
            oldest, _ = _entered.popitem(last=False)
            for table in tables:
                table.pop(oldest, None)
    return name


def _tables() -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return cache_utils.DYNAMIC_LAYER_TYPE_MAPPING, cache_utils.STATIC_LAYER_TYPE_MAPPING
    except AttributeError:
        raise BackendError(
            "This version of transformers has no tables of cache layers (cache_utils.DYNAMIC_LAYER_TYPE_MAPPING); "
            "install one that hf_longattn names in its requirements, or pass use_cache=False."
        ) from None
