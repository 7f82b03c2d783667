"""LongSiglip2Vision: the image tower of SigLIP 2 (Tschannen et al. 2025), for images of different sizes and shapes.

Images are padded lists of patches (NaFlex), each with its own grid.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.models.siglip2.configuration_siglip2 import Siglip2VisionConfig
from transformers.models.siglip2.modeling_siglip2 import (
    Siglip2Attention,
    Siglip2MultiheadAttentionPoolingHead,
    Siglip2VisionEmbeddings,
)

from ..modeling.attach.custom_attention import HandsKeywordsDown, ReplacedModules
from ..modeling.classes import Family
from ..modeling.family.grid_spec import TILE, GridSpec, LongGridConfig
from ..modeling.grids import tiled_cells


class LongSiglip2VisionConfig(LongGridConfig, Siglip2VisionConfig):
    """Siglip2VisionConfig with ``long_attention``."""

    model_type = "long_siglip2_vision_model"

    @property
    def image_size(self) -> int:
        """Side in pixels of a square image with one patch per row of the table."""
        return int(self.num_patches**0.5) * self.patch_size


class LongSiglip2VisionEmbeddings(Siglip2VisionEmbeddings):
    """Siglip2VisionEmbeddings whose position table can be repeated along both axes."""

    config: Any

    def resize_positional_embeddings(
        self, positional_embeddings: Tensor, spatial_shapes: Tensor, max_length: int
    ) -> Tensor:
        """Positions ``(B, max_length, D)`` for images of ``spatial_shapes (B, 2)`` patches, from a table
        ``(height, width, D)``."""
        if self.config.position_extension != TILE:
            return super().resize_positional_embeddings(positional_embeddings, spatial_shapes, max_length)
        tables = [tiled_cells(positional_embeddings[None], *sizes).flatten(0, 2) for sizes in spatial_shapes.tolist()]
        return torch.stack([torch.cat([table, table[:1].expand(max_length - len(table), -1)]) for table in tables])


class LongSiglip2PoolingHead(Siglip2MultiheadAttentionPoolingHead):
    """Siglip2MultiheadAttentionPoolingHead that gets a mask ``(B, 1, 1, N)`` under every attention implementation."""

    def forward(self, hidden_state: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(hidden_state, None if attention_mask is None else attention_mask.bool()[:, None, None])


class Siglip2OnItsGrids(ReplacedModules):
    """Replaces modules of the base."""

    replaced = {
        Siglip2Attention: HandsKeywordsDown,
        Siglip2VisionEmbeddings: LongSiglip2VisionEmbeddings,
        Siglip2MultiheadAttentionPoolingHead: LongSiglip2PoolingHead,
    }


FAMILY = Family(
    LongSiglip2VisionConfig,
    spec=GridSpec(shapes="spatial_shapes", interpolates=False, adds_positions=False),
    classes=("Siglip2VisionModel",),
    mixin=Siglip2OnItsGrids,
)
