"""Orders of the tokens of a grid by name; importing this does not import torch."""

from __future__ import annotations

import re
from typing import Any

from ...errors import OptionError

ORDERS = ("raster", "columns", "hilbert")
"""Orders by name, besides ``tiles:8x8`` with any sizes."""
TILES = re.compile(r"tiles:([0-9]+(?:x[0-9]+)*)")


def check_order(order: Any) -> str:
    """``order`` if it names an order of tokens on a grid: ``raster``, ``columns``, ``hilbert`` or ``tiles:8x8``.

    Raises:
        OptionError: it does not.
    """
    tiles = TILES.fullmatch(order) if isinstance(order, str) else None
    if order not in ORDERS and (tiles is None or 0 in map(int, tiles[1].split("x"))):
        raise OptionError(f"Option 'order' is {order!r}, but must be raster, columns, hilbert, or tiles with their sizes: order=tiles:8x8.")
    return str(order)
