"""LongViTMAE: masked autoencoder (He et al. 2021), a ViT that reads the patches which a random mask leaves, in random order.

A mechanism on a grid compares the patches' places in the picture, wherever they are in the sequence: a patch sees those of the patches left
that the mechanism shows it. The decoder of ``ViTMAEForPreTraining`` reads all places in their order and has its own mechanism.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.models.vit_mae.configuration_vit_mae import ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEAttention, ViTMAEDecoder, ViTMAEDecoderOutput

from ..backend import BACKEND, GRID, for_one_pass, longattn_attention_forward
from ..configuration import LongAttentionConfig
from ..engines.common.grid import Grid
from ..errors import GridError
from ..modeling.attach.custom_attention import ReplacedModules
from ..modeling.classes import lazy_classes
from ..modeling.family.definition import Family
from ..modeling.family.grid_config import TILE, LongGridConfig, refuse_line
from ..modeling.family.grid_rule import INTERPOLATE_ARGUMENT, GridRule
from ..modeling.grids import InterpolationOnGrid, LongGridModelMixin, grid_of_input, tiled_positions
from ..private_apis import attention_implementation

PLACES = "places"
"""The keyword for the places of the tokens ``(B, K)`` on their grid, and the mask ``(B, N)`` of the places that are taken."""


class LongViTMAEConfig(LongGridConfig, ViTMAEConfig):
    """ViTMAEConfig with ``long_attention``; ``decoder_long_attention`` is that of the decoder, ``None`` for full attention."""

    model_type = "long_vit_mae"

    if TYPE_CHECKING:
        decoder_long_attention: LongAttentionConfig | None
    else:
        decoder_long_attention = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.decoder_long_attention = kwargs.pop("decoder_long_attention", None)
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "decoder_long_attention" and value is not None:
            value = LongAttentionConfig.from_dict(value)
            value.check_forms(self.decoder_num_hidden_layers, False)
            for layer in range(self.decoder_num_hidden_layers):
                refuse_line(*value.for_layer(layer))
        super().__setattr__(name, value)

    def to_dict(self) -> dict[str, Any]:
        values, attention = super().to_dict(), self.decoder_long_attention
        return values if attention is None else {**values, "decoder_long_attention": attention.to_dict()}

    @property
    def decoder_attention(self) -> LongAttentionConfig:
        """The attention of the decoder."""
        return LongAttentionConfig("full") if self.decoder_long_attention is None else self.decoder_long_attention

    @property
    def _computes_as_base(self) -> bool:
        decoder = self.decoder_attention
        full = all(decoder.for_layer(layer)[0] == "full" for layer in range(self.decoder_num_hidden_layers))
        return full and super()._computes_as_base


class LongViTMAEAttention(ViTMAEAttention):
    """ViTMAEAttention of tokens in any order, some of whose places are empty."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, places: tuple[Tensor, Tensor | None] | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        mechanism: Any = getattr(self, "long_attention", None)
        on_grid = mechanism is not None and mechanism.reads_grid
        if places is None or not on_grid or attention_implementation(self.config) != BACKEND:
            return super().forward(hidden_states, attention_mask, **kwargs)
        index, mask = places
        length = kwargs[GRID].length
        if attention_mask is not None:
            mask = attention_mask.new_zeros(index.shape[0], length).scatter(1, index, attention_mask)
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        qkv = (projection(hidden_states).view(shape) for projection in (self.q_proj, self.k_proj, self.v_proj))
        at = index[:, :, None, None]
        query, key, value = (x.new_zeros(x.shape[0], length, *x.shape[2:]).scatter(1, at.expand_as(x), x).transpose(1, 2) for x in qkv)
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = longattn_attention_forward(self, query, key, value, mask, scaling=self.scaling, dropout=dropout, **kwargs)
        output = output.gather(1, at.expand(-1, -1, *output.shape[2:])).flatten(2)
        if weights is not None:
            weights = weights.gather(2, index[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[3]))
            weights = weights.gather(3, index[:, None, None].expand(-1, weights.shape[1], weights.shape[2], -1))
        return self.o_proj(output), weights  # type: ignore[return-value]


class LongViTMAEDecoderAttention(ViTMAEAttention):
    """ViTMAEAttention of the decoder."""

    in_decoder = True


class LongViTMAEDecoder(ViTMAEDecoder):
    """ViTMAEDecoder that hands the grid to its layers, and whose positions can be repeated along both axes."""

    def forward(
        self, hidden_states: Tensor, ids_restore: Tensor, interpolate_pos_encoding: bool | InterpolationOnGrid = False
    ) -> ViTMAEDecoderOutput:
        call = interpolate_pos_encoding if isinstance(interpolate_pos_encoding, InterpolationOnGrid) else None
        hidden_states = self.decoder_embed(hidden_states)
        missing = ids_restore.shape[1] + 1 - hidden_states.shape[1]
        cells = torch.cat([hidden_states[:, 1:], self.mask_token.expand(hidden_states.shape[0], missing, -1)], 1)
        cells = cells.gather(1, ids_restore[..., None].expand(-1, -1, cells.shape[2]).to(cells.device))
        hidden_states = torch.cat([hidden_states[:, :1], cells], 1)
        hidden_states = hidden_states + self._positions(hidden_states, bool(interpolate_pos_encoding), None if call is None else call.grid)
        for layer in self.decoder_layers:
            hidden_states = layer(hidden_states, **({} if call is None else call.keywords))
        return ViTMAEDecoderOutput(logits=self.decoder_pred(self.decoder_norm(hidden_states))[:, 1:])

    def _positions(self, embeddings: Tensor, interpolates: bool, grid: Grid | None) -> Tensor:
        """The positions ``(1, N, D)`` of embeddings ``(B, N, D)``."""
        if not interpolates:
            return self.decoder_pos_embed
        if self.config.position_extension != TILE:
            return self.interpolate_pos_encoding(embeddings)
        if grid is None:
            raise GridError("The decoder's positions are tiled, and it did not get the grid; call the model, which hands it down.")
        return tiled_positions(self.decoder_pos_embed, 1, *grid.sizes)


class ViTMAEOnItsGrid(ReplacedModules):
    """Replaces modules of the base by the classes above, and tells them the places of patches that the base is going to draw."""

    replaced = {ViTMAEAttention: LongViTMAEAttention, ViTMAEDecoder: LongViTMAEDecoder}

    def adapt_module(self, name: str, module: Any) -> None:
        if isinstance(module, LongViTMAEAttention) and ".decoder_layers." in f".{name}":
            module.__class__ = LongViTMAEDecoderAttention
            module.config = self.config  # the decoder's is a copy, which would keep its implementation

    def _run(self, base_forward: Any, arguments: dict[str, Any]) -> Any:
        model: Any = self
        if isinstance(arguments.get(INTERPOLATE_ARGUMENT), InterpolationOnGrid):  # which is for the decoder
            arguments[INTERPOLATE_ARGUMENT] = bool(arguments[INTERPOLATE_ARGUMENT])
        grid = grid_of_input(self, arguments)
        if isinstance(grid, Grid):
            if not isinstance(self, LongGridModelMixin):
                keywords = {GRID: grid} if model.runs_mechanisms else {}
                arguments[INTERPOLATE_ARGUMENT] = InterpolationOnGrid(bool(arguments.get(INTERPOLATE_ARGUMENT)), grid, keywords)
            elif model.runs_mechanisms:
                arguments[PLACES] = self._places(grid, arguments)
        return super()._run(base_forward, arguments)

    def _places(self, grid: Grid, arguments: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The places of the tokens that the base keeps, by the noise that it would draw itself."""
        pixels = arguments["pixel_values"]
        if arguments.get("noise") is None:
            arguments["noise"] = torch.rand(pixels.shape[0], grid.cells, device=pixels.device)
        count = int(grid.cells * (1 - self.config.mask_ratio))
        cells = arguments["noise"].argsort(1)[:, :count] + grid.prefix
        index = torch.cat([torch.arange(grid.prefix, device=cells.device).expand(cells.shape[0], -1), cells], 1)
        if count == grid.cells:
            return index, None
        return index, for_one_pass(torch.zeros(cells.shape[0], grid.length, dtype=torch.bool, device=cells.device).scatter(1, index, True))


FAMILY = Family(LongViTMAEConfig, mixin=ViTMAEOnItsGrid, grid=GridRule(prefix=1, noise="noise", adds_positions=False))

__getattr__ = lazy_classes(FAMILY, globals())
