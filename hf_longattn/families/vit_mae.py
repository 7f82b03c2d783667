"""LongViTMAE: masked autoencoder (He et al. 2021), a ViT that reads only the patches that a random mask keeps, in random order.

A mechanism on a grid uses the patches' places in the image, not their order in the sequence. A patch sees the kept patches at the places
that the mechanism makes visible. The decoder of ``ViTMAEForPreTraining`` reads all places in raster order and has its own mechanism.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.vit_mae.configuration_vit_mae import ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEAttention, ViTMAEDecoder, ViTMAEDecoderOutput

from ..backend import GRID
from ..engines.common.grid import Grid
from ..errors import GridError
from ..modeling.attach.custom_attention import ReplacedModules, by_head
from ..modeling.attach.places import PLACES, Places, attend_at_places, needs_places, places_of_cells
from ..modeling.classes import Family, long_config
from ..modeling.family.grid_config import TILE, LongMaskedAutoencoderConfig
from ..modeling.family.grid_rule import INTERPOLATE_ARGUMENT, GridRule
from ..modeling.grids import InterpolationOnGrid, LongGridModelMixin, grid_of_input, tiled_positions


class LongViTMAEAttention(ViTMAEAttention):
    """ViTMAEAttention for patches in any order, without the masked ones."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, places: Places | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if places is None or not needs_places(self):
            return super().forward(hidden_states, attention_mask, **kwargs)
        query, key, value = by_head(hidden_states, self.head_dim, self.q_proj, self.k_proj, self.v_proj)
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attend_at_places(self, query, key, value, places, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs)
        return self.o_proj(output), weights  # type: ignore[return-value]


class LongViTMAEDecoder(ViTMAEDecoder):
    """ViTMAEDecoder that passes the grid to its layers and can tile its position table."""

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
    """Replaces modules of the base. They get the places of the patches that the base will keep."""

    replaced = {ViTMAEAttention: LongViTMAEAttention, ViTMAEDecoder: LongViTMAEDecoder}

    def adapt_module(self, name: str, module: Any) -> None:
        if isinstance(module, LongViTMAEAttention) and ".decoder_layers." in f".{name}":
            module.in_decoder = True
            module.config = self.config  # the base gives the decoder a copy, which set_attn_implementation would miss

    def call_base(self, base_forward: Any, arguments: dict[str, Any]) -> Any:
        model: Any = self
        if isinstance(arguments.get(INTERPOLATE_ARGUMENT), InterpolationOnGrid):  # the decoder needs the object, the encoder a bool
            arguments[INTERPOLATE_ARGUMENT] = bool(arguments[INTERPOLATE_ARGUMENT])
        grid = grid_of_input(self, arguments)
        if isinstance(grid, Grid):
            if not isinstance(self, LongGridModelMixin):
                keywords = {GRID: grid} if model.runs_mechanisms else {}
                arguments[INTERPOLATE_ARGUMENT] = InterpolationOnGrid(bool(arguments.get(INTERPOLATE_ARGUMENT)), grid, keywords)
            elif model.runs_mechanisms:
                arguments[PLACES] = self._places(grid, arguments)
        return super().call_base(base_forward, arguments)

    def _places(self, grid: Grid, arguments: dict[str, Any]) -> Places:
        """The places of the patches that the base will keep. Draws the base's random ``noise`` beforehand if it is not given."""
        pixels = arguments["pixel_values"]
        if arguments.get("noise") is None:
            arguments["noise"] = torch.rand(pixels.shape[0], grid.cells, device=pixels.device)
        count = int(grid.cells * (1 - self.config.mask_ratio))
        return places_of_cells(arguments["noise"].argsort(1)[:, :count], grid)


FAMILY = Family(
    long_config(__name__, LongMaskedAutoencoderConfig, ViTMAEConfig),
    mixin=ViTMAEOnItsGrid,
    rule=GridRule(prefix=1, noise="noise", adds_positions=False),
)
