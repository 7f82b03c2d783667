"""What the gathered engine visits: rows of queries with rows of keys, as lists of positions."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Part:
    """R rows of query–key pairs. Sizes of 1 in the batch and head axes serve every batch item and head.

    queries: ``(B or 1, H or 1, R, Tq)`` int64, positions on the queries' axis; -1 is an empty slot. No query twice in one part.
    keys: ``(B or 1, H or 1, R, Tk)`` int64, positions on the keys' axis; -1 is an empty slot.
        What has been listed is not written to afterwards: how it is best visited is found once and kept with the tensors.
    causal: leave out the keys behind the query.
    inside: ``(low, high)``: only pairs with ``low <= query - key <= high``.
    outside: ``(low, high)``: no pairs with ``low <= query - key <= high``; another part has them.
    bias: ``(B or 1, H or 1, R or 1, Tq or 1, Tk)``: bool (False leaves a pair out) or float added to the scores; may need gradients.

    A key that a query meets in two parts, or twice in one row, counts twice: leave it out by ``outside`` or ``bias`` where the
    definition counts it once.
    """

    queries: Tensor
    keys: Tensor
    causal: bool = False
    inside: tuple[int, int] | None = None
    outside: tuple[int, int] | None = None
    bias: Tensor | None = None


def rows_of(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """Positions 0 … length-1 in rows of ``size``, ``(1, 1, R, size)``, the last row filled up with -1."""
    count = -(-length // size)
    places = torch.arange(count * size, device=device)
    return torch.where(places < length, places, -1).view(1, 1, count, size)
