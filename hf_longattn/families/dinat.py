"""LongDinat: Dilated Neighborhood Attention Transformer (Hassani and Shi 2022), stages of layers. Each stage halves the grid. transformers'
classes need functions that NATTEN has removed. Here the attention is the mechanism ``neighborhood`` with a relative position bias."""

from __future__ import annotations

from typing import Any

from transformers.models.dinat.configuration_dinat import DinatConfig

from ..configuration import LongAttentionConfig
from ..modeling.attach.custom_attention import OnTheBackend, replacing
from ..modeling.classes import Family
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_rule import StagedGrid


class LongDinatConfig(LongGridConfig, DinatConfig):
    """DinatConfig with ``long_attention``. By default every layer has ``neighborhood`` with the config's kernel size and the layer's
    dilation."""

    model_type = "long_dinat"
    attribute_map = {"num_attention_heads": "num_heads"}

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers in all stages."""
        return sum(self.depths)


def own_attention(config: Any) -> LongAttentionConfig:
    """The mechanisms equal to the attention of a DiNAT with this config."""
    return LongAttentionConfig(
        "neighborhood",
        kernel_size=config.kernel_size,
        layers={layer: {"dilation": dilation} for layer, dilation in enumerate(layer_dilations(config)) if dilation != 1},
    )


def least_sides(config: Any) -> list[int]:
    """Minimum cells along each axis, for every layer. Smaller grids are padded with zeros."""
    return [config.kernel_size * dilation for dilation in layer_dilations(config)]


def layer_dilations(config: Any) -> list[int]:
    """The dilation of every layer."""
    return [dilation for stage, depth in zip(config.dilations, config.depths, strict=True) for dilation in stage[:depth]]


def base_classes() -> dict[str, type[Any]]:
    """The base classes by name, in a form that can be built without NATTEN."""
    from ..modeling.attach.dinat_base import DinatBackbone, DinatForImageClassification, DinatModel

    return {kind.__name__: kind for kind in (DinatModel, DinatForImageClassification, DinatBackbone)}


FAMILY = Family(
    LongDinatConfig,
    backbone_classes=("DinatBackbone",),
    mixin=replacing(__name__, {}, OnTheBackend),
    rule=StagedGrid(
        interpolates=False,
        adds_positions=False,
        has_positions=False,
        why_no_crops="convolutions between its stages mix the cells of neighbouring crops",
        trained_pixels=224,
        least_sides=least_sides,
    ),
    base_classes=base_classes,
    own_attention=own_attention,
)
