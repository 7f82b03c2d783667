"""LongBeit: BEiT (Bao et al. 2021), a ViT with relative position biases in place of positions.

The bias is not built as ``(H, N, N)``, but is a term of a mechanism's scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.beit.configuration_beit import BeitConfig
from transformers.models.beit.modeling_beit import BeitAttention, BeitRelativePositionBias

from ..engines.score_terms import PREFIX_PAIRS, GridBias
from ..modeling.attach.custom_attention import OnTheBackend
from ..modeling.classes import Family, long_config
from ..modeling.family.grid_spec import TILE, GridSpec, LongGridConfig
from ..modeling.family.long_config import runs_mechanisms


@dataclass(frozen=True)
class MaskWithBias:
    """The mask argument of the base's attention modules: a bias by distance, and the padding mask ``(B, N)``."""

    bias: GridBias
    mask: Tensor | None = None

    def __add__(self, other: MaskWithBias | Tensor) -> MaskWithBias:
        """Set a padding mask, or add the bias of another mask."""
        if isinstance(other, Tensor):
            return replace(self, mask=other)
        return MaskWithBias(self.bias + other.bias, self.mask if other.mask is None else other.mask)


def bias_by_distance(module: Any, grid: tuple[int, int], config: Any) -> GridBias:
    """The bias of a base's ``relative_position_bias_table (M + 3, H)`` for a grid of these sizes.

    Args:
        module: a BeitRelativePositionBias, or a module with its ``relative_position_bias_table`` and ``window_size``.
        config: with ``position_extension="tile"`` the table is unchanged. Distances beyond the table get the bias of
            its largest distance; windows of the old size have no such distances. With ``"interpolate"``, the table is
            resized to the grid as the base does (MiDaS v3.1).
    """
    table, sizes = module.relative_position_bias_table, tuple(module.window_size)
    if config.position_extension == TILE or grid == sizes:
        return GridBias(table.t(), tuple(sizes))
    height, width = (2 * size - 1 for size in sizes)
    distances = table[:-PREFIX_PAIRS].reshape(1, width, height, -1).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(distances, size=(2 * grid[0] - 1, 2 * grid[1] - 1), mode="bilinear")
    return GridBias(torch.cat([resized.flatten(2)[0].t(), table[-PREFIX_PAIRS:]]).t(), tuple(grid))


class LongBeitRelativePositionBias(BeitRelativePositionBias):
    """BeitRelativePositionBias that gives a mechanism one bias per head and distance."""

    config: Any

    def forward(
        self, window_size: tuple[int, int], interpolate_pos_encoding: bool = False, dim_size: int | None = None
    ) -> Any:
        """A :class:`MaskWithBias`. If no mechanism runs, the base's bias ``(1, H, N, N)``."""
        if not runs_mechanisms(self):
            return super().forward(window_size, interpolate_pos_encoding, dim_size)
        return MaskWithBias(bias_by_distance(self, window_size, self.config))


class LongBeitAttention(BeitAttention):
    """BeitAttention that takes a :class:`MaskWithBias` as its mask."""

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if isinstance(attention_mask, MaskWithBias):
            kwargs["position_bias"] = attention_mask.bias
            attention_mask = attention_mask.mask
        return super().forward(hidden_states, attention_mask, **kwargs)


class BeitWithBias(OnTheBackend):
    """Replaces the base's position bias, and its attention, which takes the bias."""

    replaced = {BeitRelativePositionBias: LongBeitRelativePositionBias, BeitAttention: LongBeitAttention}
    adding = ("use_relative_position_bias", "use_shared_relative_position_bias")


FAMILY = Family(
    long_config(__name__, LongGridConfig, BeitConfig),
    mixin=BeitWithBias,
    spec=GridSpec(prefix=1, interpolates=False, adds_positions=False),
)
