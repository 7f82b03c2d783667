"""LongVideoMAE: masked autoencoder of videos (Tong et al. 2022), tubelets of patches without a class token. Positions are a fixed table of
sinusoids by token number. For larger videos, the table is interpolated, linearly along time and bicubically along height and width (as in
Unmasked Teacher and InternVideo2), or repeated along all axes. The encoder reads only the cells that a mask keeps; the decoder reads these
and then the masked ones. So mechanisms use the cells' places in the video, not their order in the sequence.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.models.videomae.configuration_videomae import VideoMAEConfig
from transformers.models.videomae.modeling_videomae import (
    VideoMAEDecoder,
    VideoMAEDecoderOutput,
    VideoMAEEmbeddings,
    VideoMAEEncoder,
    VideoMAEPatchEmbeddings,
    VideoMAESelfAttention,
)

from ..backend import COLLECT_WEIGHTS, GRID
from ..errors import MaskError
from ..modeling.attach.custom_attention import ReplacedModules, attend_by_mechanism, split_heads
from ..modeling.attach.places import PLACES, Places, attend_at_places, needs_places, places_of_cells
from ..modeling.classes import Family
from ..modeling.family.config import runs_mechanisms
from ..modeling.family.grid_config import TILE, LongMaskedAutoencoderConfig, LongVideoConfig
from ..modeling.family.grid_rule import PATCH_MASK
from ..modeling.family.video_rule import VideoGrid
from ..modeling.grids import LongGridModelMixin, grid_of_input, handed, handing, interpolated_frames, tiled_cells

KEYWORDS = (GRID, COLLECT_WEIGHTS, PLACES)
"""Keyword arguments of attention modules that the base's models do not pass on."""


class LongVideoMAEConfig(LongMaskedAutoencoderConfig, LongVideoConfig, VideoMAEConfig):
    """VideoMAEConfig with ``long_attention`` and, for the decoder, ``decoder_long_attention``; ``None`` for full attention."""

    model_type = "long_videomae"


class LongVideoMAESelfAttention(VideoMAESelfAttention):
    """VideoMAESelfAttention for cells in any order, possibly without the masked ones."""

    def forward(self, hidden_states: Tensor, places: Places | None = None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        if not runs_mechanisms(self):
            return super().forward(hidden_states)
        query, key, value = (split_heads(self, projection(hidden_states)) for projection in (self.query, self.key, self.value))
        kwargs["dropout"] = self.dropout_prob if self.training else 0.0
        if places is None or not needs_places(self):
            return attend_by_mechanism(self, query, key, value, None, scaling=self.scaling, **kwargs)
        return attend_at_places(self, query, key, value, places, scaling=self.scaling, **kwargs)


class LongVideoMAEPatchEmbeddings(VideoMAEPatchEmbeddings):
    """VideoMAEPatchEmbeddings for videos of any size."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.projection(pixel_values.transpose(1, 2)).flatten(2).transpose(1, 2)


class LongVideoMAEEmbeddings(VideoMAEEmbeddings):
    """VideoMAEEmbeddings for videos of any size."""

    def forward(self, pixel_values: Tensor, bool_masked_pos: Tensor | None) -> Tensor:
        table = positions(self.config, self.position_embeddings, RULE.size_of(pixel_values))
        embeddings = self.patch_embeddings(pixel_values)
        embeddings = embeddings + table.to(embeddings)
        if bool_masked_pos is None:
            return embeddings
        return embeddings[~bool_masked_pos].reshape(embeddings.shape[0], -1, embeddings.shape[2])


class LongVideoMAEEncoder(VideoMAEEncoder):
    """VideoMAEEncoder that passes the grid and the tokens' places to its layers."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        return super().forward(hidden_states, **{**handed(self), **kwargs})


class LongVideoMAEDecoder(VideoMAEDecoder):
    """VideoMAEDecoder that passes the grid and the tokens' places to its layers."""

    def forward(self, hidden_states: Tensor, return_token_num: int) -> VideoMAEDecoderOutput:
        keywords = handed(self)
        for layer in self.decoder_layers:
            hidden_states = layer(hidden_states, **keywords)
        return VideoMAEDecoderOutput(logits=self.head(self.norm(hidden_states[:, -return_token_num:])))


class VideoMAEOnItsGrid(ReplacedModules):
    """Replaces modules of the base. They get the grid and, if there is a mask, the places of the cells."""

    replaced = {
        VideoMAESelfAttention: LongVideoMAESelfAttention,
        VideoMAEPatchEmbeddings: LongVideoMAEPatchEmbeddings,
        VideoMAEEmbeddings: LongVideoMAEEmbeddings,
        VideoMAEEncoder: LongVideoMAEEncoder,
        VideoMAEDecoder: LongVideoMAEDecoder,
    }

    def adapt_module(self, name: str, module: Any) -> None:
        if isinstance(module, LongVideoMAESelfAttention) and ".decoder_layers." in f".{name}":
            module.in_decoder = True
            module.config = self.config  # the base gives the decoder a copy, which set_attn_implementation would miss

    def call_base(self, base_forward: Any, arguments: dict[str, Any]) -> Any:
        model: Any = self
        mask: Any = arguments.get(PATCH_MASK)
        grid: Any = grid_of_input(self, arguments)
        order = None if mask is None or grid is None else _order(mask, grid.cells)

        def run(base: Any, **keywords: Any) -> Any:
            if isinstance(base, LongGridModelMixin):
                below = {name: keywords.pop(name) for name in KEYWORDS if name in keywords}
                if order is not None and model.runs_mechanisms:
                    below[PLACES] = places_of_cells(order[:, : int((~mask[0]).sum())], grid)
                with handing(base.encoder, below):
                    return base_forward(base, **keywords)
            if order is None or not hasattr(base, "decoder"):
                return base_forward(base, **keywords)
            resized = copy.copy(base)  # a shallow copy: the same modules, another position table
            resized.position_embeddings = positions(base.config, base.position_embeddings, RULE.size_of(arguments[RULE.input]))
            with handing(base.decoder, {GRID: grid, PLACES: places_of_cells(order, grid)} if model.runs_mechanisms else {}):
                return base_forward(resized, **keywords)

        return super().call_base(run, arguments)


def positions(config: Any, table: Tensor, size: tuple[int, ...]) -> Tensor:
    """Positions ``(1, cells, D)`` of a video of ``size``. Extended from ``table``, the positions of videos of the trained size."""
    old, new = (RULE.of_size(config, video).sizes for video in (RULE.sizes(config)[0], size))
    extended = tiled_cells if getattr(config, "position_extension", None) == TILE else interpolated_frames
    return extended(table.unflatten(1, old), *new).flatten(1, 3)


def _order(mask: Tensor, cells: int) -> Tensor:
    """Cell indices ``(B, N)``: kept cells first, then masked ones, each in raster order.

    Raises:
        MaskError: the mask is not ``(B, cells)``, or the number of masked cells differs between videos.
    """
    if mask.shape[1:] != (cells,) or (not torch.compiler.is_compiling() and len(set(mask.sum(1).tolist())) > 1):
        raise MaskError(
            f"{PATCH_MASK} has shape {tuple(mask.shape)}, but must be (batch, {cells}), bool, with equally many cells left out of every "
            "video; make it from the video's number of tubelets and patches."
        )
    return mask.int().argsort(dim=1, stable=True)


@contextmanager
def _resized(base: Any, size: tuple[int, ...]) -> Iterator[None]:
    """Context in which transformers' base reads videos of this size. Positions are interpolated from its table."""
    embeddings, table = base.embeddings, base.embeddings.position_embeddings
    patches = embeddings.patch_embeddings
    before = patches.image_size
    embeddings.position_embeddings, patches.image_size = positions(base.config, table, size), size[1:]
    try:
        yield
    finally:
        embeddings.position_embeddings, patches.image_size = table, before


RULE = VideoGrid(resizing=_resized)
FAMILY = Family(LongVideoMAEConfig, mixin=VideoMAEOnItsGrid, rule=RULE)
