"""Windows that do not overlap, on a grid of any rank: an image, a video, a spectrogram. Sources: Liu et al. 2021, Swin
Transformer, sections 3.1-3.2; Li et al. 2022, ViTDet, section 3.

With windows of w cells along an axis, the cell at coordinate x is in the window number

    ⌊x / w⌋,  or in a shifted layer  ⌊(x + w - ⌊w/2⌋) / w⌋

and sees the cells with the same number on every axis. ``shift=alternate`` shifts every second layer, as Swin does. The
partial windows at the borders are not joined, as with Swin's mask. An axis that fits into one window is not shifted.

Partial windows have only real cells. Swin, ViTDet and SAM instead complete partial windows: before the projections,
they append zero cells to the end of each axis. ``padding=zeros`` reproduces this. A padding cell is in the window that
the formula gives for its coordinates, and takes a share of the softmax there. Its key and value are initialised as
copies of the projections' biases. Prefix tokens do not see padding cells.

Prefix tokens (a class token, registers) have no coordinates. The option ``prefix_tokens`` sets which tokens the prefix
sees, and which see the prefix:

    global   every token sees the prefix, and the prefix sees every token
    reads    the prefix sees every token, but no cell sees the prefix
    none     the prefix sees only itself, and no cell sees the prefix
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..engines.call import AttentionCall, MaskMod
from ..engines.dense import dense_attention, repeat_heads
from ..engines.dispatch import choose
from ..engines.grid_windows import cropped, padded, regions, window_attention
from ..engines.score_terms import GridBias, ScoreMod, ScoreTerm
from ..engines.token_grid import Grid
from ..errors import InputError
from .common.base import LayerSizes, check_all_queries, scaled_scores, softmax_over
from .common.capabilities import About, CopiesProjections, OnGrid
from .common.masked import MaskedMechanism
from .common.options import Options, option
from .common.registry import register_mechanism
from .common.shared_options import AttendedKeys, with_dense_terms

if TYPE_CHECKING:
    from typing_extensions import Self

Coordinates = tuple[Any, ...]
"""The coordinates of tokens on every axis, as broadcastable tensors."""
GLOBAL, READS, NONE, ZEROS = "global", "reads", "none", "zeros"


@dataclasses.dataclass(frozen=True)
class Window2dOptions(Options):
    prefix_tokens: str = option(
        GLOBAL,
        "what the tokens before the grid (class token, registers) see, and who sees them. 'global': they see "
        "everything, and every cell sees them; 'reads': they see everything, and no cell sees them; 'none': they see "
        "each other only",
        choices=(GLOBAL, READS, NONE),
    )
    window: tuple[int, ...] = option(
        (14,), "cells of a window along each axis: one number, or one for each axis", "cells", least=1
    )
    shift: str = option(
        "none",
        "'alternate': windows of every second layer are shifted by half a window; 'none': never",
        choices=("none", "alternate"),
    )
    padding: str = option(
        NONE,
        "padding of partial windows at the end of an axis: 'none': they have their real cells only; 'zeros': cells "
        "whose input is zero, which take a share of the softmax, as in Swin, ViTDet and SAM",
        choices=(NONE, ZEROS),
    )

    def is_mask(self) -> bool:
        return self.padding == NONE


@register_mechanism("window2d")
class Window2d(MaskedMechanism, CopiesProjections, OnGrid):
    about = About(
        summary="on a grid: softmax inside windows that do not overlap, shifted in every second layer or not",
        paper="Liu et al. 2021, Swin Transformer, §3.1-3.2; Li et al. 2022, ViTDet, §3",
        when="images: the first choice on a grid, with full attention in one layer of three or four",
        engine="grid_windows",
        cost="N·w² on an image",
        sample={"window": 4},
        covering=lambda grid: {"window": max(grid.sizes)},
    )
    causal = False
    capabilities = MaskedMechanism.capabilities.but(
        takes_sinks=False, needs_grid=True, images="any", takes_fewer_queries=False
    )
    listed = True
    options: Window2dOptions
    grid: Grid | None = None
    """The grid bound by :meth:`on_grid`. Used by calls and methods that get no grid."""

    def __init__(self, sizes: LayerSizes, options: Options) -> None:
        super().__init__(sizes, options)
        self.pads = self.options.padding == ZEROS
        """Whether partial windows are padded."""
        self.per_head_tensors = ("pad_key", "pad_value") if self.pads else ()
        self.copies = {}
        if self.pads:
            self.pad_key = nn.Parameter(torch.empty(self.num_heads, self.head_dim))
            self.pad_value = nn.Parameter(torch.empty(self.num_heads, self.head_dim))
            self.copies = {"pad_key": "key.bias", "pad_value": "value.bias"}
            self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Set the padding key and value to 0, as without biases. In a model, they become copies of the layer's
        biases."""
        super().reset_parameters(generator)
        if self.pads:
            nn.init.zeros_(self.pad_key)
            nn.init.zeros_(self.pad_value)

    @property
    def shifted(self) -> bool:
        """Whether the windows of this layer are shifted."""
        return self.options.shift == "alternate" and self.layer % 2 == 1

    def windows(self, grid: Grid) -> tuple[list[int], list[int]]:
        """Window size w and shift s along each axis: the cell at x is in window ``(x + s) // w``."""
        window = list(grid.per_axis(self.options.window, "window"))
        if not self.pads:
            # a min would stay in every later expression of a graph with symbolic sizes
            window = [size if size < axis else axis for size, axis in zip(window, grid.sizes, strict=True)]
        shift = [0] * grid.rank
        if self.shifted:  # an axis that fits into one window is not shifted
            shift = [size - size // 2 if size < axis else 0 for size, axis in zip(window, grid.sizes, strict=True)]
        return window, shift

    def on_grid(self, grid: Grid, check: bool = False, layer: int | None = None) -> Self:
        """A copy bound to ``grid`` and, if given, to the number ``layer``.

        ``check`` refuses windows larger than the grid.
        """
        window = grid.per_axis(self.options.window, "window")
        if (
            check
            and self.covers_grid(grid)
            and any(size > axis for size, axis in zip(window, grid.sizes, strict=True))
        ):
            raise InputError(
                f"A window of {' × '.join(map(str, window))} cells is larger than the grid of "
                f"{' × '.join(map(str, grid.sizes))}, so that every token sees every token; choose a smaller window, "
                "or the mechanism 'full'."
            )
        bound = copy.copy(self)
        bound.grid = grid
        if layer is not None:
            bound.layer = layer
        return bound

    def grid_of(self, call: AttentionCall | None, tokens: Any | None = None) -> Grid:
        """The grid of a call, or the grid bound by :meth:`on_grid`.

        Raises:
            InputError: there is no grid, or its number of tokens is not ``tokens``.
        """
        grid = self.grid
        if call is not None and call.grid is not None:
            grid = call.grid
        if grid is None:
            raise InputError(
                f"Mechanism {self.name!r} compares coordinates on a grid, but got no grid; for a text, choose another "
                "mechanism (`longattn mechanisms` lists them); with tensors, pass grid=(height, width) and the number "
                "of tokens before the grid, for example prefix=1."
            )
        if tokens is not None:
            grid.check(tokens)
        return grid

    def grid_for(self, q: Tensor, k: Tensor, call: AttentionCall) -> Grid:
        """:meth:`grid_of` for queries and keys.

        Raises:
            InputError: there are not as many queries as keys, so that they cannot be the tokens of the grid.
        """
        check_all_queries(self, q, k)
        return self.grid_of(call, k.shape[2])

    def sees(self, grid: Grid, query: Coordinates, key: Coordinates) -> Tensor:
        """The definition: whether cells at coordinates ``query`` see cells at coordinates ``key``, bool
        (broadcastable)."""
        window, shift = self.windows(grid)
        same_on_axis = [(q + s) // w == (k + s) // w for q, k, w, s in zip(query, key, window, shift, strict=True)]
        return torch.stack(torch.broadcast_tensors(*same_on_axis)).all(0)

    def mask_on(self, grid: Grid) -> MaskMod:
        """:meth:`mask_mod` for the tokens of ``grid``, prefix tokens included."""
        mode, prefix = self.options.prefix_tokens, grid.prefix

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            seen = self.sees(grid, grid.coordinates(q_idx), grid.coordinates(kv_idx))
            if not prefix:
                return seen
            from_prefix, to_prefix = q_idx < prefix, kv_idx < prefix
            if mode == GLOBAL:
                return seen | from_prefix | to_prefix
            seen = seen & ~to_prefix  # no cell sees the prefix
            if mode == READS:
                return seen | from_prefix
            return torch.where(from_prefix, to_prefix, seen)

        return mod

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        return self.mask_on(self.grid_of(None))

    def visible(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return super(Window2d, self.on_grid(self.grid_for(q, k, call))).visible(q, k, call)

    def keys_by_mask(self, k: Tensor, call: AttentionCall) -> AttendedKeys:
        return super(Window2d, self.on_grid(self.grid_of(call, k.shape[2]))).keys_by_mask(k, call)

    def shared_prefix(self, grid: Grid) -> int:
        """The number of prefix tokens that every cell sees: either all of them or 0."""
        return grid.prefix if self.options.prefix_tokens == GLOBAL else 0

    def padded_grid(self, grid: Grid) -> Grid:
        """The grid, enlarged by the padding that completes its windows."""
        if not self.pads:
            return grid
        window = self.windows(grid)[0]
        return dataclasses.replace(
            grid, sizes=tuple(-(-axis // size) * size for axis, size in zip(grid.sizes, window, strict=True))
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, N, D)``. With padding, it is computed on a larger grid, whose cells are then cut off."""
        grid = self.grid_for(q, k, call)
        larger = self.padded_grid(grid)
        if larger == grid:
            return self.attend_on(grid, q, k, v, call)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        queries = padded(q, grid, larger, torch.zeros_like(self.pad_key))
        keys, values = padded(k, grid, larger, self.pad_key), padded(v, grid, larger, self.pad_value)
        mask = call.key_mask
        if mask is not None:  # padding cells count as real keys
            real = torch.ones(1, 1, dtype=torch.bool, device=mask.device)
            mask = padded(mask[:, None, :, None], grid, larger, real)[:, 0, :, 0]
        larger_call = call.with_mask(mask).replace(grid=larger)
        larger_call = larger_call.with_term(lambda term: _on_padded(term, grid, larger, q.device))
        cells = cropped(self.attend_on(larger, queries, keys, values, larger_call), grid, larger)
        if not grid.prefix:
            return cells
        return torch.cat([self.prefix_rows(q, k, v, grid, call), cells], 2)

    def attend_on(self, grid: Grid, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """Attention of the tokens of ``grid``, ``(B, H, N, D)``."""
        path = choose("windows", q, k, call, covered=self.covers_grid(grid))
        if path == "dense":
            return dense_attention(q, k, v, call)
        if path == "dense-masked":
            return dense_attention(q, k, v, call, mask_mod=self.mask_on(grid))
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        prefix_out = None
        if grid.prefix:
            prefix_out = self.prefix_rows(q, k, v, grid, call)
        return window_attention(q, k, v, grid, *self.windows(grid), self.shared_prefix(grid), call, prefix_out)

    def prefix_rows(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, call: AttentionCall) -> Tensor:
        """The output of the prefix tokens, ``(B, H, prefix, D)``. The only score term allowed is a
        :class:`GridBias`."""
        seen = slice(0, grid.prefix) if self.options.prefix_tokens == NONE else slice(None)
        queries, keys, values = q[:, :, : grid.prefix], k[:, :, seen], v[:, :, seen]
        positions = None
        if call.score_mod is not None:
            positions = torch.arange(grid.prefix, device=q.device).view(1, 1, -1, 1)
        if call.key_mask is not None:
            call = call.with_mask(call.key_mask[:, seen])
        return dense_attention(queries, keys, values, call, q_idx=positions)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return self._dense_weights(q, k, call)[0]

    def defined(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        weights, padding_weight = self._dense_weights(*with_dense_terms(self, q, k, call))
        out = weights @ repeat_heads(v, q.shape[1])
        if padding_weight is not None:
            out = out + padding_weight * self.pad_value[:, None].to(v.dtype)
        return out

    def _dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """Weights of tokens ``(B, H, N, N)``, and each query's total weight on padding ``(B, H, N, 1)``, ``None``
        without padding."""
        grid = self.grid_for(q, k, call)
        larger = self.padded_grid(grid)
        if larger == grid:
            return super().dense_weights(q, k, call), None

        # Coordinates of the padding cells, (cells, rank): the cells of the larger grid that are not in the grid.
        axes = (torch.arange(size, device=q.device) for size in larger.sizes)
        cells = torch.cartesian_prod(*axes).view(-1, grid.rank)
        cells = cells[(cells >= torch.tensor(grid.sizes, device=q.device)).any(1)]
        padding = cells.unbind(1)

        # Scores and visibility of the padding cells are further columns, (B, H, N, cells).
        tokens = torch.arange(grid.length, device=q.device)[:, None]
        scores = (q @ self.pad_key[..., None].to(q.dtype)) * call.scale_for(q.shape[-1])
        scores = scores.expand(-1, -1, -1, len(cells))
        if isinstance(call.score_mod, GridBias):
            scores = scores + call.score_mod.beyond_grid(padding)
        padding_seen = self.sees(grid, grid.coordinates(tokens), padding) & (tokens >= grid.prefix)
        tokens_seen = self.visible(q, k, call).expand(*scores.shape[:3], grid.length)
        visible = torch.cat([tokens_seen, padding_seen.expand(scores.shape)], 3)
        weights = softmax_over(torch.cat([scaled_scores(q, k, call), scores], 3), visible)
        return weights[..., : grid.length], weights[..., grid.length :].sum(3, keepdim=True)

    def grid_blocks(self, grid: Grid) -> tuple[int, ...] | None:
        return None if self.shifted else tuple(self.windows(grid)[0])

    def covers_grid(self, grid: Grid) -> bool:
        """Whether the mechanism equals full attention on ``grid``."""
        one_window = all(size >= axis for size, axis in zip(self.windows(grid)[0], grid.sizes, strict=True))
        return self.shared_prefix(grid) == grid.prefix and one_window and self.padded_grid(grid) == grid

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.grid is not None and self.grid.length == length and self.covers_grid(self.grid)

    def pairs(self, length: int, causal: bool = False) -> int:
        grid = self.grid_of(None, length)
        regions_of_cells = regions(grid, *self.windows(grid))
        in_windows = sum(math.prod(run.windows * run.size**2 for run in region) for region in regions_of_cells)
        # each prefix token sees the cells, is seen by them, or both
        pairs_with_cells = {GLOBAL: 2 * grid.cells, READS: grid.cells, NONE: 0}[self.options.prefix_tokens]
        return in_windows + grid.prefix * (grid.prefix + pairs_with_cells)


def _on_padded(term: ScoreTerm, grid: Grid, larger: Grid, device: torch.device) -> ScoreMod:
    """The score term ``term`` of ``grid`` on the padded grid ``larger``.

    A :class:`GridBias` depends on coordinates and also applies to padding cells. Other terms depend on the position in
    the sequence, which padding cells do not have, and leave their scores unchanged.
    """
    if isinstance(term, GridBias):
        return term.on(larger)
    inner = term.written_out
    # position in the sequence of each token of the larger grid; -1 for padding cells
    positions = torch.arange(grid.length, device=device).view(1, 1, -1, 1)
    positions = padded(positions, grid, larger, torch.full((1, 1), -1, device=device)).flatten()

    def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        query, key = positions[q_idx], positions[kv_idx]
        changed = inner(score, b, h, query.clamp(min=0), key.clamp(min=0))
        return torch.where((query >= 0) & (key >= 0), changed, score)

    return mod
