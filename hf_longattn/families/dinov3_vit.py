"""LongDINOv3ViT: DINOv3 (Siméoni et al. 2025), for images of any size.

Rotary positions use coordinates from -1 to 1 over the image. With ``position_extension="tile"``, the coordinates
restart in every tile of the old image's size."""

import torch
from torch import Tensor
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTRopePositionEmbedding

from ..modeling.attach.custom_attention import replacing
from ..modeling.classes import Family, long_config
from ..modeling.family.grid_spec import TILE, GridSpec, LongGridConfig, image_size
from ..modeling.grids import tiled_cells


class LongDINOv3ViTRope(DINOv3ViTRopePositionEmbedding):
    """DINOv3ViTRopePositionEmbedding whose coordinates can be repeated along both axes."""

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.position_extension != TILE:
            return super().forward(pixel_values)
        # cos and sin for an image of the old size, repeated over the grid of the new one
        old_image = pixel_values.new_empty(1, 1, *image_size(self.config.image_size))
        old, new = (SPEC.of_size(self.config, tuple(image.shape[-2:])).sizes for image in (old_image, pixel_values))
        cos, sin = torch.stack(super().forward(old_image)).unflatten(1, old)[:, None]
        return tiled_cells(cos, *new).flatten(0, 2), tiled_cells(sin, *new).flatten(0, 2)


SPEC = GridSpec(prefix=lambda config: 1 + config.num_register_tokens, interpolates=False, adds_positions=False)
FAMILY = Family(
    long_config(__name__, LongGridConfig, DINOv3ViTConfig),
    backbone_classes=("DINOv3ViTBackbone",),
    mixin=replacing(__name__, {DINOv3ViTRopePositionEmbedding: LongDINOv3ViTRope}),
    spec=SPEC,
)
