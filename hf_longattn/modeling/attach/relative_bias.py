"""BEiT's bias by distance on the grid. For families whose base adds it to the scores as a tensor ``(H, N, N)``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...engines.common.score_terms import PREFIX_PAIRS, GridBias
from ..family.grid_config import TILE

BIASES = ("use_relative_position_bias", "use_shared_relative_position_bias")
"""The fields of a base's config that say whether it has this bias."""


@dataclass(frozen=True)
class MaskWithBias:
    """The mask that a base passes to its attention modules. A bias by distance, and the padding mask ``(B, N)``."""

    bias: GridBias
    mask: Tensor | None = None

    def __add__(self, other: MaskWithBias | Tensor) -> MaskWithBias:
        if isinstance(other, Tensor):
            return replace(self, mask=other)
        return MaskWithBias(self.bias + other.bias, self.mask if other.mask is None else other.mask)


def bias_by_distance(module: Any, grid: tuple[int, int], config: Any) -> GridBias:
    """The bias of a base's ``relative_position_bias_table (M + 3, H)``. For a grid of the given sizes.

    Args:
        module: a BeitRelativePositionBias, or a module with its ``relative_position_bias_table`` and ``window_size``.
        config: with ``position_extension="tile"`` the table is unchanged, and distances beyond it get the furthest distance's bias (windows
            of the old size see none). With ``"interpolate"``, the table is resized to the grid as the base does (MiDaS v3.1).
    """
    table, sizes = module.relative_position_bias_table, tuple(module.window_size)
    if config.position_extension == TILE or grid == sizes:
        return GridBias.of_swin(table, sizes)
    height, width = (2 * size - 1 for size in sizes)
    distances = table[:-PREFIX_PAIRS].reshape(1, width, height, -1).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(distances, size=(2 * grid[0] - 1, 2 * grid[1] - 1), mode="bilinear")
    return GridBias.of_swin(torch.cat([resized.flatten(2)[0].t(), table[-PREFIX_PAIRS:]]), grid)
