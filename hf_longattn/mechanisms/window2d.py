"""Windows that do not overlap, on a grid of any rank: an image, a video, a spectrogram. Sources: Liu et al. 2021, Swin Transformer,
sections 3.1-3.2; Li et al. 2022, ViTDet, section 3.

With windows of w cells along an axis, the cell at coordinate x is in the window number

    ⌊x / w⌋,  or in a shifted layer  ⌊(x + w - ⌊w/2⌋) / w⌋

and sees the cells with the same number on every axis. ``shift=alternate`` shifts every second layer, as Swin does. The partial windows at
the borders are not joined, as with Swin's mask. An axis that fits into one window is not shifted.

Partial windows have only real cells. Swin, ViTDet and SAM instead complete them: before the projections, they append zero cells to the
end of each axis. ``padding=zeros`` reproduces this. A padding cell is in the window that the formula gives for its coordinates, and takes a
share of the softmax there. Its key and value are initialised as copies of the projections' biases. Prefix tokens do not see it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..engines.common.call import AttentionCall, GatherTile
from ..engines.common.dense import repeat_heads
from ..engines.common.grid import Grid
from ..engines.common.paths import Kind, PathName
from ..engines.common.score_terms import ScoreMod, ScoreTerm
from ..engines.grid_windows import cropped, padded, regions, window_attention
from ..errors import GridError
from ..options import Options, option
from .common.on_grid import GridMechanism, GridOptions, Places
from .common.registry import register_mechanism
from .common.relative_terms import with_dense_terms
from .common.scores import scaled_scores, softmax_over

PaddingOfLayer = Callable[[], tuple[Tensor | None, Tensor | None]]
"""Computes the key and the value ``(H · D,)`` of a padding cell; ``None`` is zero."""

NONE, ZEROS = "none", "zeros"


@dataclasses.dataclass(frozen=True)
class Window2dOptions(GridOptions):
    window: tuple[int, ...] = option((14,), "cells of a window along each axis: one number, or one for each axis", "cells", least=1)
    shift: str = option(
        "none", "'alternate': windows of every second layer are shifted by half a window; 'none': never", choices=("none", "alternate")
    )
    padding: str = option(
        NONE,
        "padding of partial windows at the end of an axis: 'none': they have their real cells only; 'zeros': cells whose input "
        "is zero, which take a share of the softmax, as in Swin, ViTDet and SAM",
        choices=(NONE, ZEROS),
    )

    def is_mask(self) -> bool:
        return self.padding == NONE


@register_mechanism("window2d")
class Window2d(GridMechanism):
    """Softmax inside windows of a grid. Windows do not overlap."""

    summary = "on a grid: softmax inside windows that do not overlap, shifted in every second layer or not"
    paper = "Liu et al. 2021, Swin Transformer, §3.1-3.2; Li et al. 2022, ViTDet, §3"
    when = "images and videos: the first choice on a grid, with full attention in one layer of three or four"
    engine = "grid_windows"
    cost = "N·w² on an image"
    sample: ClassVar[dict[str, Any]] = {"window": 4}
    options: Window2dOptions
    padding_of_layer: PaddingOfLayer | None = None

    @classmethod
    def covering_grid(cls, grid: Grid) -> dict[str, Any]:
        return {"window": max(grid.sizes)}

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: Options) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        if self.pads:
            self.pad_key, self.pad_value = (nn.Parameter(torch.empty(num_heads, head_dim)) for _ in range(2))
            self.traits = self.traits.but(copies={"pad_key": "key.bias", "pad_value": "value.bias"})
            self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Set the padding key and value to 0, as without biases. In a model, ``traits.copies`` replaces them by the layer's biases."""
        super().reset_parameters(generator)
        if self.pads and self.padding_of_layer is None:
            nn.init.zeros_(self.pad_key)
            nn.init.zeros_(self.pad_value)

    @property
    def per_head_tensors(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("pad_key", "pad_value") if self.pads and self.padding_of_layer is None else ()

    def take_padding_from(self, layer: PaddingOfLayer) -> None:
        """Compute the padding key and value by ``layer`` in every call, instead of storing parameters."""
        self.padding_of_layer, self.traits = layer, self.traits.but(copies={})
        del self.pad_key, self.pad_value

    def padding_rows(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The key and the value ``(H, D)`` of a padding cell."""
        if self.padding_of_layer is None:
            return self.pad_key, self.pad_value
        shape = self.num_heads, self.head_dim
        key, value = (like.new_zeros(shape) if row is None else row.view(shape) for row in self.padding_of_layer())
        return key, value

    @property
    def pads(self) -> bool:
        """Whether partial windows are padded."""
        return self.options.padding == ZEROS

    @property
    def shifted(self) -> bool:
        """Whether the windows of this layer are shifted."""
        return self.options.shift == "alternate" and self.layer % 2 == 1

    @property
    def layer_kind(self) -> int:
        return int(self.shifted)

    def windows(self, grid: Grid) -> tuple[list[int], list[int]]:
        """Window size w and shift s along each axis: the cell at x is in window ``(x + s) // w``."""
        window = list(grid.per_axis(self.options.window, "window"))
        if not self.pads:
            # a min would stay in every later expression of a graph with symbolic sizes
            window = [size if size < axis else axis for size, axis in zip(window, grid.sizes, strict=True)]
        return window, [size - size // 2 if self.shifted and size < axis else 0 for size, axis in zip(window, grid.sizes, strict=True)]

    def sees(self, grid: Grid, query: Places, key: Places) -> Tensor:
        window, shift = self.windows(grid)
        same = [(q + s) // w == (k + s) // w for q, k, w, s in zip(query, key, window, shift, strict=True)]
        return torch.stack(torch.broadcast_tensors(*same)).all(0)

    def padded_grid(self, grid: Grid) -> Grid:
        """The grid, enlarged by the padding that completes its windows."""
        if not self.pads:
            return grid
        window = self.windows(grid)[0]
        return dataclasses.replace(grid, sizes=tuple(-(-axis // size) * size for axis, size in zip(grid.sizes, window, strict=True)))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        grid = self.grid_for(q, k, call)
        larger = self.padded_grid(grid)
        if larger == grid:
            return self.attend_on(grid, q, k, v, call)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        pad_key, pad_value = self.padding_rows(k)
        queries = padded(q, grid, larger, torch.zeros_like(pad_key))
        keys, values = padded(k, grid, larger, pad_key), padded(v, grid, larger, pad_value)
        mask = call.key_mask
        if mask is not None:
            mask = padded(mask[:, None, :, None], grid, larger, torch.ones(1, 1, dtype=torch.bool, device=mask.device))[:, 0, :, 0]
        of_larger = call.with_mask(mask).replace(grid=larger).with_term(lambda term: _on_padded(term, queries, grid, larger))
        out = cropped(self.attend_on(larger, queries, keys, values, of_larger), grid, larger)
        if not grid.prefix:
            return out
        return torch.cat([self.prefix_rows(q, k, v, grid, call), out[:, :, grid.prefix :]], 2)

    def kind_of_call(self, grid: Grid) -> Kind:
        return "windows"

    def attend_cells(
        self, path: PathName, grid: Grid, q: Tensor, k: Tensor, v: Tensor, of_prefix: Tensor | None, call: AttentionCall
    ) -> Tensor:
        return window_attention(q, k, v, grid, *self.windows(grid), self.shared_prefix(grid), call, of_prefix)

    @property
    def mask_is_reach(self) -> bool:
        return True  # a padding cell is not a token

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return self._dense_weights(q, k, call)[0]

    def defined(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        of_tokens, of_padding = self._dense_weights(*with_dense_terms(self, q, k, call))
        out = of_tokens @ repeat_heads(v, q.shape[1])
        return out if of_padding is None else out + of_padding * self.padding_rows(v)[1][:, None].to(v.dtype)

    def _dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """Weights of tokens ``(B, H, N, N)``, and each query's total weight on padding ``(B, H, N, 1)``, ``None`` without padding."""
        grid = self.grid_for(q, k, call)
        larger = self.padded_grid(grid)
        if larger == grid:
            return super().dense_weights(q, k, call), None
        places = torch.cartesian_prod(*(torch.arange(size, device=q.device) for size in larger.sizes)).view(-1, grid.rank)
        places = places[(places >= torch.tensor(grid.sizes, device=q.device)).any(1)]
        tokens = torch.arange(grid.length, device=q.device)[:, None]
        queries, fillers = grid.places(tokens), places.unbind(1)
        scores = (q @ self.padding_rows(q)[0][..., None].to(q.dtype)) * call.scale_for(q.shape[-1])
        scores = scores.expand(-1, -1, -1, len(places))
        term = call.term.beyond_grid(fillers)
        scores = scores if term is None else scores + term
        seen = self.sees(grid, queries, fillers) & (tokens >= grid.prefix)
        of_tokens = self.visible(q, k, call).expand(*scores.shape[:3], grid.length)
        visible = torch.cat([of_tokens, seen.expand(scores.shape)], 3)
        weights = softmax_over(torch.cat([scaled_scores(q, k, call), scores], 3), visible)
        return weights[..., : grid.length], weights[..., grid.length :].sum(3, keepdim=True)

    def tiles(self, grid: Grid, device: torch.device) -> tuple[GatherTile, ...]:
        cells = torch.arange(grid.prefix, grid.length, device=device).view(grid.sizes)
        tiles = []
        for region in regions(grid, *self.windows(grid)):
            part = cells[tuple(stretch.cells for stretch in region)]
            inner = [number for stretch in region for number in (stretch.windows, stretch.size)]
            numbers, inside = range(0, 2 * grid.rank, 2), range(1, 2 * grid.rank, 2)
            windows = part.reshape(inner).permute(*numbers, *inside).reshape(1, 1, math.prod(inner[::2]), -1)
            tiles.append(GatherTile(windows, windows))
        return tuple(tiles)

    def blocks(self, grid: Grid) -> tuple[int, ...] | None:
        return None if self.shifted else tuple(self.windows(grid)[0])

    def check_grid(self, grid: Grid) -> None:
        window = grid.per_axis(self.options.window, "window")
        if any(size > axis for size, axis in zip(window, grid.sizes, strict=True)) and self.covers_grid(grid):
            raise GridError(
                f"A window of {' × '.join(map(str, window))} cells is larger than the grid of {' × '.join(map(str, grid.sizes))}, so that "
                "every token sees every token; choose a smaller window, or the mechanism 'full'."
            )

    def covers_cells(self, grid: Grid) -> bool:
        one_window = all(size >= axis for size, axis in zip(self.windows(grid)[0], grid.sizes, strict=True))
        return one_window and self.padded_grid(grid) == grid

    def cell_pairs(self, grid: Grid) -> int:
        return sum(math.prod(stretch.windows * stretch.size**2 for stretch in region) for region in regions(grid, *self.windows(grid)))


def _on_padded(term: ScoreTerm, queries: Tensor, grid: Grid, larger: Grid) -> ScoreMod:
    """``term`` on the padded grid ``larger``, with its ``queries (B, H, N, D)``. Padding cells have distances, but no position in the
    sequence."""
    on_larger = term.on_larger(larger, queries)
    if on_larger is not None:
        return on_larger
    inner = term.written_out
    positions = torch.arange(grid.length, device=queries.device).view(1, 1, -1, 1)
    positions = padded(positions, grid, larger, torch.full((1, 1), -1, device=queries.device)).flatten()

    def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        query, key = positions[q_idx], positions[kv_idx]
        changed = inner(score, b, h, query.clamp(min=0), key.clamp(min=0))
        return torch.where((query >= 0) & (key >= 0), changed, score)

    return mod
