"""LongVJEPA2: V-JEPA 2 (Assran et al. 2025), tubelets of patches without a class token, rotary positions by frame, row and column.

The base computes rows and columns of tokens from ``config.crop_size``, also for videos of another size. Here they are counted on the
video's own grid; with ``position_extension="tile"`` they restart in every tile of the old video's size. The predictor, which reads context
and targets in one sequence, and the pooler of the classifier keep full attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.models.vjepa2.configuration_vjepa2 import VJEPA2Config
from transformers.models.vjepa2.modeling_vjepa2 import (
    VJEPA2Layer,
    VJEPA2PoolerSelfAttention,
    VJEPA2RopeAttention,
    eager_attention_forward,
)

from ..backend import GRID
from ..engines.common.grid import Grid
from ..modeling.attach.custom_attention import ReplacedModules, attend_by_config, split_heads
from ..modeling.classes import Family
from ..modeling.family.config import FullDecoder
from ..modeling.family.grid_config import TILE, LongVideoConfig
from ..modeling.family.video_rule import VideoGrid
from ..modeling.grids import LongGridModelMixin, grid_of_input


class LongVJEPA2Config(FullDecoder, LongVideoConfig, VJEPA2Config):
    """VJEPA2Config with ``long_attention`` of the encoder. The predictor and the pooler have full attention."""

    model_type = "long_vjepa2"


class LongVJEPA2RopeAttention(VJEPA2RopeAttention):
    """VJEPA2RopeAttention with rotary positions from the video's own grid."""

    def forward(
        self, hidden_states: Tensor, position_mask: Tensor | None = None, grid: Grid | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value = (split_heads(self, projection(hidden_states)) for projection in (self.query, self.key, self.value))
        tokens = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        numbers = tokens if position_mask is None else position_mask[:, None]
        places = self._places(numbers, grid)
        query, key = (self.apply_rotary_embeddings(rows, places) for rows in (query, key))
        output, weights = attend_by_config(
            self, eager_attention_forward, query, key, value, None, scaling=self.scaling, dropout=self.dropout_prob, is_causal=False,
            **({} if position_mask is not None else {GRID: grid}), **kwargs,
        )  # fmt: skip
        return self.proj(output), weights

    def _places(self, numbers: Tensor, grid: Grid | None) -> tuple[Tensor, ...]:
        """Frame, row and column of tokens, from their ``numbers`` in raster order."""
        old = RULE.of_size(self.config, RULE.sizes(self.config)[0])
        places = (old if grid is None else grid).places(numbers)
        if self.config.position_extension == TILE:
            places = tuple(place % size for place, size in zip(places, old.sizes, strict=True))
        return places


class LongVJEPA2PoolerSelfAttention(VJEPA2PoolerSelfAttention):
    """VJEPA2PoolerSelfAttention, with full attention."""

    in_decoder = True


class LongVJEPA2Layer(VJEPA2Layer):
    """VJEPA2Layer that passes the grid on to attention."""

    def forward(self, hidden_states: Tensor, position_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, ...]:
        attended, weights = self.attention(self.norm1(hidden_states), position_mask=position_mask, **kwargs)
        hidden_states = self.drop_path(attended) + hidden_states
        return self.drop_path(self.mlp(self.norm2(hidden_states))) + hidden_states, weights


class VJEPA2OnItsGrid(ReplacedModules):
    """Replaces modules of the base, and passes them the grid with every attention implementation."""

    replaced = {
        VJEPA2RopeAttention: LongVJEPA2RopeAttention,
        VJEPA2PoolerSelfAttention: LongVJEPA2PoolerSelfAttention,
        VJEPA2Layer: LongVJEPA2Layer,
    }

    def adapt_module(self, name: str, module: Any) -> None:
        if isinstance(module, LongVJEPA2RopeAttention) and "predictor." in name:
            module.in_decoder = True  # the predictor has full attention

    def call_base(self, base_forward: Any, arguments: dict[str, Any]) -> Any:
        if isinstance(self, LongGridModelMixin):
            arguments[GRID] = grid_of_input(self, arguments)
        return super().call_base(base_forward, arguments)


@contextmanager
def _resized(base: Any, size: tuple[int, ...]) -> Iterator[None]:
    """Context in which transformers' base computes positions for videos of this size. They come from rows and columns."""
    grid = RULE.of_size(base.config, size)

    def places(hidden_states: Tensor, masks: Tensor | None = None) -> tuple[Tensor, ...]:
        tokens = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        return grid.places(tokens if masks is None else masks[:, None])

    attending = [module for module in base.modules() if isinstance(module, VJEPA2RopeAttention)]
    for module in attending:
        module.get_position_ids = places
    try:
        yield
    finally:
        for module in attending:
            del module.get_position_ids


RULE = VideoGrid(
    input="pixel_values_videos", frames="frames_per_clip", side="crop_size", colours="in_chans", repeats_frames=True,
    counts_places=True, numbers_by_side=True, leaves_out="skip_predictor", resizing=_resized,
)  # fmt: skip
FAMILY = Family(LongVJEPA2Config, mixin=VJEPA2OnItsGrid, rule=RULE)
