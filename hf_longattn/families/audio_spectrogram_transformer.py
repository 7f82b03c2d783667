"""LongAST: Audio Spectrogram Transformer (Gong et al. 2021), overlapping patches of a spectrogram after a class and a distillation token.
A spectrogram is a grid of frequency and time. The position table is extended along time; transformers cannot resize it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers.models.audio_spectrogram_transformer.configuration_audio_spectrogram_transformer import ASTConfig
from transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer import ASTEmbeddings

from ..errors import OptionError
from ..modeling.attach.custom_attention import replacing
from ..modeling.classes import Family
from ..modeling.family.grid_config import TILE, LongGridConfig
from ..modeling.family.grid_rule import SpectrogramGrid
from ..modeling.grids import tiled_cells


class LongASTConfig(LongGridConfig, ASTConfig):
    """ASTConfig with ``long_attention``.

    max_length: the base's field, unchanged: number of frames of a spectrogram for which the position table was trained.
    long_max_length: number of frames of a spectrogram for which the model was converted. Other lengths are read as well.
    position_extension: the positions of longer spectrograms. ``"interpolate"`` stretches the table linearly along time, as the authors'
        code does (ast_models.py). ``"tile"`` repeats it along time.
    """

    model_type = "long_audio-spectrogram-transformer"

    if TYPE_CHECKING:
        long_max_length: int | None
    else:
        long_max_length = None

    def _take_size(self, values: dict[str, Any]) -> None:
        frames = values.pop("long_max_length", None)
        if frames is not None and (not isinstance(frames, int) or isinstance(frames, bool) or frames < 1):
            raise OptionError(f"long_max_length is {frames!r}, but must be a number of frames, for example 3000 for 30 seconds.")
        self.long_max_length = frames


class LongASTEmbeddings(ASTEmbeddings):
    """ASTEmbeddings for spectrograms of any length. Spectrograms shorter than in training have the first positions of the table."""

    def forward(self, input_values: Tensor) -> Tensor:
        """``input_values (B, frames, mel bins)`` to ``(B, N, D)``."""
        rows, columns = self.get_shape(self.config)
        patches = self.patch_embeddings(input_values)
        tokens = [token.expand(patches.shape[0], -1, -1) for token in (self.cls_token, self.distillation_token)]
        return self.dropout(torch.cat([*tokens, patches], 1) + self.positions(rows, columns, patches.shape[1] // rows))

    def positions(self, rows: int, columns: int, length: int) -> Tensor:
        """Positions ``(1, 2 + rows · length, D)``. The stored table is for ``rows`` × ``columns`` patches."""
        table = self.position_embeddings
        if length == columns:
            return table
        prefix = table.shape[1] - rows * columns
        cells = table[:, prefix:].unflatten(1, (rows, columns))
        if length < columns or self.config.position_extension == TILE:
            cells = tiled_cells(cells, rows, length)
        else:
            cells = interpolate(cells.movedim(-1, 1), (rows, length), mode="bilinear").movedim(1, -1)
        return torch.cat([table[:, :prefix], cells.flatten(1, 2)], 1)


FAMILY = Family(LongASTConfig, mixin=replacing(__name__, {ASTEmbeddings: LongASTEmbeddings}), rule=SpectrogramGrid(prefix=2))
