"""LongVitDet: ViTDet (Li et al. 2022), a plain ViT as the backbone of a detector, with windows in most layers and full attention in a few.
transformers' windows are the mechanism ``window2d`` with ``padding=zeros``. Other mechanisms can replace them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate
from transformers.models.vitdet.configuration_vitdet import VitDetConfig
from transformers.models.vitdet.modeling_vitdet import VitDetAttention, VitDetEmbeddings, window_partition, window_unpartition

from ..backend import longattn_attention_forward
from ..configuration import LongAttentionConfig
from ..engines.common.grid import Grid
from ..errors import OptionError
from ..mechanisms.common.base import Mechanism
from ..mechanisms.window2d import ZEROS, Window2d
from ..modeling.attach.custom_attention import OnTheBackend
from ..modeling.classes import Family
from ..modeling.family.config import runs_mechanisms
from ..modeling.family.definition import AttentionNames
from ..modeling.family.grid_config import TILE, LongGridConfig
from ..modeling.family.grid_rule import GridRule
from ..modeling.grids import tiled_cells
from ..positions.axis_term import AxisTerm

NOT_ADOPTED = {
    ("use_absolute_position_embeddings", False): (
        "transformers builds no ViTDet without its position table; use a checkpoint that has one."
    ),
}
"""(field of a config, value) -> why the value is refused."""


class LongVitDetConfig(LongGridConfig, VitDetConfig):
    """VitDetConfig with ``long_attention``. By default, layers in ``window_block_indices`` have windows of ``window_size``, and the
    remaining layers have full attention.

    pretrain_image_size: the base's field, unchanged: the image size for which the position table was trained.
    """

    model_type = "long_vitdet"

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, bool) and (name, value) in NOT_ADOPTED:
            raise OptionError(f"The config says {name}={value}, and {NOT_ADOPTED[name, value]}")
        super().__setattr__(name, value)


def own_attention(config: Any) -> LongAttentionConfig:
    """The mechanisms that equal the attention of a ViTDet with this config."""
    windowed = sorted(set(config.window_block_indices) & set(range(config.num_hidden_layers))) if config.window_size else []
    windows = {"mechanism": "window2d", "window": config.window_size, "padding": ZEROS}
    return LongAttentionConfig("full", layers={layer: dict(windows) for layer in windowed})


class LongVitDetEmbeddings(VitDetEmbeddings):
    """VitDetEmbeddings that can tile the position table instead of interpolating it."""

    config: Any

    def get_absolute_positions(self, abs_pos_embeddings: Tensor, has_cls_token: bool, height: int, width: int) -> Tensor:
        """Positions ``(1, height, width, C)`` for ``height`` × ``width`` cells. From the table ``(1, 1 + n·n, C)``."""
        if self.config.position_extension != TILE:
            return super().get_absolute_positions(abs_pos_embeddings, has_cls_token, height, width)
        cells = abs_pos_embeddings[:, 1:] if has_cls_token else abs_pos_embeddings
        side = round(cells.shape[1] ** 0.5)
        return tiled_cells(cells.unflatten(1, (side, side)), height, width)


class LongVitDetAttention(VitDetAttention):
    """VitDetAttention with a mechanism on the whole grid. With other implementations, it cuts the windows, as the base's layer does."""

    config: Any
    is_causal = False
    window_size: int

    def forward(self, hidden_state: Tensor, output_attentions: bool = False) -> tuple[Tensor, ...]:
        """Output in the shape of ``hidden_state (B, height, width, C)``, and the weights if ``output_attentions``."""
        if not runs_mechanisms(self):
            if not self.window_size:
                return super().forward(hidden_state, output_attentions)
            windows, padded = window_partition(hidden_state, self.window_size)
            output, *weights = super().forward(windows, output_attentions)
            return (window_unpartition(output, self.window_size, padded, tuple(hidden_state.shape[1:-1])), *weights)
        grid = Grid(tuple(hidden_state.shape[1:-1]))
        projected = self.qkv(hidden_state.flatten(1, 2)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind()
        relative = AxisTerm(query, self.relative_tables(grid), grid) if self.use_relative_position_embeddings else None
        output, weights = longattn_attention_forward(
            self, query, key, value, None, scaling=self.scale, grid=grid, position_bias=relative, output_attentions=output_attentions
        )
        output = self.proj(output.flatten(2)).unflatten(1, grid.sizes)
        return (output, weights) if output_attentions and weights is not None else (output,)

    def relative_tables(self, grid: Grid) -> tuple[Tensor, ...]:
        """For each axis of n cells, the table ``(2·n - 1, D)`` of relative positions. A layer with windows in the base has its tables
        as stored. Tables of the other layers are interpolated to the grid, as in the base.
        """
        tables = self.rel_pos_h, self.rel_pos_w
        if self.window_size:
            return tables
        return tuple(interpolated_rows(table, 2 * size - 1) for table, size in zip(tables, grid.sizes, strict=True))

    def adapt_mechanism(self, mechanism: Mechanism) -> None:
        """Make windows take the padding's key and value from the projection's biases. Training then changes them as in the base."""
        if isinstance(mechanism, Window2d) and mechanism.pads:
            mechanism.take_padding_from(self.padding)

    def padding(self) -> tuple[Tensor | None, Tensor | None]:
        """The key and the value ``(H · D,)`` of a cell whose input is zero. ``None`` without biases."""
        bias = self.qkv.bias
        return (None, None) if bias is None else tuple(bias.chunk(3)[1:])


def interpolated_rows(table: Tensor, count: int) -> Tensor:
    """``table (n, D)`` with ``count`` rows, as transformers' ViTDet resizes tables of relative positions."""
    if table.shape[0] == count:
        return table
    return interpolate(table.t()[None], size=count, mode="linear")[0].t()


class VitDetOnTheBackend(OnTheBackend):
    """Replaces modules of the base."""

    adding = ("use_relative_position_embeddings",)
    replaced = {VitDetEmbeddings: LongVitDetEmbeddings, VitDetAttention: LongVitDetAttention}

    def adapt_module(self, name: str, module: Any) -> None:
        if isinstance(module, LongVitDetAttention):
            layer: Any = self.get_submodule(name.rpartition(".")[0])
            module.window_size, layer.window_size = layer.window_size, 0


FAMILY = Family(
    LongVitDetConfig,
    backbone_classes=("VitDetBackbone",),
    mixin=VitDetOnTheBackend,
    attention=AttentionNames(fused="qkv", split=lambda attention, parameter: parameter.chunk(3), output="proj"),
    rule=GridRule(
        interpolates=False,
        table_size="pretrain_image_size",
        returns_maps=True,
        why_no_crops="its outputs are maps, in which residual blocks mix the cells of neighbouring crops",
    ),
    own_attention=own_attention,
)
