"""transformers' DiNAT (Hassani and Shi 2022) without NATTEN, the base of LongDinat.

transformers' classes refuse to be built without an installed NATTEN before version 0.20, which removed the two functions that they call.
The classes here derive from them and use their constructors. Only the attention module differs: it uses transformers'
AttentionInterface, and its ``eager`` is NATTEN's definition in plain operations. Parameters and checkpoints are the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ...engines.common.grid import Grid
from ...engines.common.score_terms import GridBias
from ...errors import BackendError
from .custom_attention import attend_by_config, split_heads

try:
    from transformers.models.dinat import modeling_dinat as stock
except ImportError as error:
    raise BackendError(
        f"transformers cannot import its DiNAT with the NATTEN that is installed ({error}); uninstall it (pip uninstall natten), it is not "
        "needed here."
    ) from error


class NeighborhoodAttention(stock.NeighborhoodAttention):
    """DiNAT's attention module on transformers' AttentionInterface. Every implementation adds the bias by distance.

    Heads have the layout of the checkpoints and of transformers 4. transformers 5 itself confuses heads with the columns of the grid.
    """

    config: Any
    is_causal = False

    def forward(self, hidden_states: Tensor, output_attentions: bool | None = False) -> tuple[Tensor, ...]:
        """The output, in the shape of ``hidden_states (B, height, width, C)``. With the weights if they are requested."""
        grid, tokens = Grid(tuple(hidden_states.shape[1:-1])), hidden_states.flatten(1, 2)
        query, key, value = (split_heads(self, projection(tokens)) for projection in (self.query, self.key, self.value))
        bias = GridBias.of_neighborhood(self.rpb, (self.dilation,))
        output, weights = attend_by_config(
            self,
            eager_neighborhood_attention,
            query,
            key,
            value,
            None,
            grid=grid,
            position_bias=bias,
            output_attentions=bool(output_attentions),
        )
        output = output.unflatten(1, grid.sizes)
        return (output, weights) if output_attentions and weights is not None else (output,)


def eager_neighborhood_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    grid: Grid,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """NATTEN's ``natten2dqkrpb``, softmax and ``natten2dav``, one neighbour at a time. Stores all weights.

    Args:
        module: has ``kernel_size``, ``dilation`` and ``rpb (H, 2·k - 1, 2·k - 1)``, indexed by key - query in steps of the dilation.
        query, key, value: ``(B, H, N, D)`` of the cells of ``grid``.
    Returns:
        ``(B, N, H, D)`` and the weights ``(B, H, height, width, k²)``.
    """
    rows, columns = (_neighbours(size, module.kernel_size, module.dilation, query.device) for size in grid.sizes)
    q, k, v = (x.unflatten(2, grid.sizes) for x in (query * scaling, key, value))
    pairs = [(row, column) for row in zip(*rows, strict=True) for column in zip(*columns, strict=True)]

    def neighbour(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return x.index_select(2, row).index_select(3, column)

    scores = [
        (q * neighbour(k, row[0], column[0])).sum(-1) + module.rpb.index_select(1, row[1]).index_select(2, column[1])
        for row, column in pairs
    ]
    weights = nn.functional.dropout(torch.stack(scores, -1).softmax(-1), dropout)
    output = torch.zeros_like(v)
    for number, (row, column) in enumerate(pairs):
        output = output + weights[..., number, None] * neighbour(v, row[0], column[0])
    return output.flatten(2, 3).transpose(1, 2), weights


def _neighbours(cells: int, kernel: int, dilation: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The neighbours of every cell along an axis, ``(k, cells)``. With their indices in the bias table.

    Neighbours are cells with an equal index modulo the dilation. At a border, the window of k cells slides inwards.
    """
    cell = torch.arange(cells, device=device)
    residue, place = cell % dilation, torch.div(cell, dilation, rounding_mode="floor")
    members = torch.div(cells - 1 - residue, dilation, rounding_mode="floor") + 1
    first = torch.minimum((place - kernel // 2).clamp(min=0), members - kernel)
    neighbour = first + torch.arange(kernel, device=device)[:, None]
    return neighbour * dilation + residue, neighbour - place + kernel - 1


def encoder_without_natten(config: Any) -> nn.Module:
    """DinatEncoder with :class:`NeighborhoodAttention` in every layer."""
    encoder = stock.DinatEncoder(config)
    for module in encoder.modules():
        if type(module) is stock.NeighborhoodAttention:
            module.__class__ = NeighborhoodAttention
            module.config = config
    return encoder


def constructor_without_natten(base: type, **names: Any) -> Callable[..., None]:
    """The constructor of a class of transformers' DiNAT, without the check of ``requires_backends``.

    It is a copy of the function with other globals, so that transformers' own module does not change.

    Args:
        names: further globals to replace in it.
    """
    constructor: Any = inspect.unwrap(base.__init__)  # type: ignore[misc]
    names = {"requires_backends": lambda *arguments: None, "DinatEncoder": encoder_without_natten, **names}
    copy = FunctionType(
        constructor.__code__, {**constructor.__globals__, **names}, constructor.__name__, constructor.__defaults__, constructor.__closure__
    )
    copy.__kwdefaults__ = constructor.__kwdefaults__
    return copy


class DinatModel(stock.DinatModel):
    """transformers' DinatModel."""

    _supports_attention_backend = True
    __init__ = constructor_without_natten(stock.DinatModel)


class DinatForImageClassification(stock.DinatForImageClassification):
    """transformers' DinatForImageClassification."""

    _supports_attention_backend = True
    __init__ = constructor_without_natten(stock.DinatForImageClassification, DinatModel=DinatModel)


class DinatBackbone(stock.DinatBackbone):
    """transformers' DinatBackbone."""

    _supports_attention_backend = True
    __init__ = constructor_without_natten(stock.DinatBackbone)
