"""LongSiglip2Vision: the image tower of SigLIP 2 (Tschannen et al. 2025), for images of different sizes and shapes.

Images are padded lists of patches (NaFlex), each with its own grid.

Images of one size can be given without padding, with ``spatial_shapes=(height, width)`` in patches. Exported graphs take this form.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
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
        self, positional_embeddings: Tensor, spatial_shapes: Tensor | tuple[int, int], max_length: int
    ) -> Tensor:
        """Positions ``(B, max_length, D)`` for images of ``spatial_shapes (B, 2)`` patches, from a table ``(height, width, D)``.

        If ``spatial_shapes`` is one tuple (height, width) for all images, the result is ``(1, height · width, D)``.
        """
        if isinstance(spatial_shapes, tuple):
            return self._resized(positional_embeddings, *spatial_shapes)
        if self.config.position_extension != TILE:
            return super().resize_positional_embeddings(positional_embeddings, spatial_shapes, max_length)
        tables = [tiled_cells(positional_embeddings[None], *sizes).flatten(0, 2) for sizes in spatial_shapes.tolist()]
        return torch.stack([torch.cat([table, table[:1].expand(max_length - len(table), -1)]) for table in tables])

    def _resized(self, table: Tensor, height: int, width: int) -> Tensor:
        """Resize the table for one size, as the base does, or tile it. A graph can contain these operations."""
        if self.config.position_extension == TILE:
            return tiled_cells(table[None], height, width).flatten(1, 2)
        cells = table.permute(2, 0, 1)[None]
        resized = interpolate(cells.float(), (height, width), mode="bilinear", align_corners=False, antialias=True)
        return resized.to(table.dtype).flatten(2).mT


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

    def call_base(self, base_forward: Any, arguments: dict[str, Any]) -> Any:
        if isinstance(arguments.get("spatial_shapes"), tuple):  # one size, no padding
            arguments.setdefault("pixel_attention_mask", None)
        return super().call_base(base_forward, arguments)


FAMILY = Family(
    LongSiglip2VisionConfig,
    spec=GridSpec(shapes="spatial_shapes", interpolates=False, adds_positions=False),
    classes=("Siglip2VisionModel",),
    mixin=Siglip2OnItsGrids,
)
