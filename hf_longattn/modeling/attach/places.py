"""Attention among some cells of a grid, in any order. Masked autoencoders leave the other cells out (ViT-MAE, VideoMAE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...backend import GRID, longattn_attention_forward
from ...engines.common.batch import for_one_pass
from ...engines.common.grid import Grid
from ..family.config import runs_mechanisms

Places = tuple[Tensor, Tensor | None]
"""Grid positions of the tokens ``(B, K)``, and a mask ``(B, N)`` of occupied positions; ``None`` if all are occupied."""
PLACES = "places"
"""The keyword for the :data:`Places` of an attention module's tokens."""


def places_of_cells(cells: Tensor, grid: Grid) -> Places:
    """The grid positions of the prefix and of ``cells (B, K)``. Cells are numbered in raster order."""
    index = cells + grid.prefix
    if grid.prefix:
        index = torch.cat([torch.arange(grid.prefix, device=cells.device).expand(cells.shape[0], -1), index], 1)
    if cells.shape[1] == grid.cells:
        return index, None
    return index, for_one_pass(torch.zeros(cells.shape[0], grid.length, dtype=torch.bool, device=cells.device).scatter(1, index, True))


def needs_places(module: Any) -> bool:
    """Whether an attention module's mechanism reads the grid positions of tokens."""
    mechanism = getattr(module, "long_attention", None)
    return mechanism is not None and mechanism.reads_grid and runs_mechanisms(module)


def attend_at_places(
    module: Any, query: Tensor, key: Tensor, value: Tensor, places: Places, attention_mask: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Run the ``longattn`` backend on the tokens at ``places``. Query, key and value are ``(B, H, K, D)``.

    Args:
        attention_mask: padding, ``(B, K)``.
        kwargs: arguments of the attention function, the grid included.
    Returns:
        ``(B, K, H · D)``, and the weights ``(B, H, K, K)`` if they are requested.
    """
    index, mask = places
    length = kwargs[GRID].length
    if attention_mask is not None:
        mask = attention_mask.new_zeros(index.shape[0], length).scatter(1, index, attention_mask)
    at = index[:, None, :, None]
    query, key, value = (x.new_zeros(*x.shape[:2], length, x.shape[3]).scatter(2, at.expand_as(x), x) for x in (query, key, value))
    output, weights = longattn_attention_forward(module, query, key, value, mask, **kwargs)
    output = output.gather(1, index[:, :, None, None].expand(-1, -1, *output.shape[2:])).flatten(2)
    if weights is not None:
        weights = weights.gather(2, at.expand(-1, weights.shape[1], -1, weights.shape[3]))
        weights = weights.gather(3, index[:, None, None].expand(-1, weights.shape[1], weights.shape[2], -1))
    return output, weights
