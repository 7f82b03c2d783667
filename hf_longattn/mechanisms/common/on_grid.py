"""Mechanisms on a grid of any rank: a mask over the coordinates of cells, and prefix tokens.

Cells are compared by their coordinates (row and column in an image, also frame in a video). Prefix tokens (a class token, registers) have
no coordinates. The option ``prefix_tokens`` sets which tokens the prefix sees, and which see the prefix:

    global   every token sees the prefix, and it sees every token
    reads    the prefix sees every token, no cell sees it
    none     the prefix sees itself only, no cell sees it
"""

from __future__ import annotations

import copy
import dataclasses
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...engines.common.byte_cache import BYTE_CACHE
from ...engines.common.call import AttentionCall, GatherTile, MaskMod, mark_static
from ...engines.common.dense import dense_attention, repeat_heads
from ...engines.common.grid import Grid
from ...engines.common.paths import Kind, PathName
from ...engines.dispatch import choose
from ...engines.gathered import gathered_attention
from ...errors import GridError, LengthError, OptionError
from ...options import Options, option
from .base import Mechanism
from .masked import MaskedMechanism
from .ordered import KeysOrWeights

if TYPE_CHECKING:
    from typing_extensions import Self

GLOBAL, READS, NONE = "global", "reads", "none"
Places = tuple[Any, ...]
"""The coordinates of tokens on every axis, as broadcastable tensors."""


@dataclasses.dataclass(frozen=True)
class GridOptions(Options):
    prefix_tokens: str = option(
        GLOBAL,
        "what the tokens before the grid (class token, registers) see, and who sees them. 'global': they see everything, and every cell "
        "sees them; 'reads': they see everything, and no cell sees them; 'none': they see each other only",
        choices=(GLOBAL, READS, NONE),
    )

    def check(self) -> None:
        if self.order is not None:
            raise OptionError(
                f"A mechanism on a grid compares coordinates, so that token order changes nothing; leave order={self.order} out, or "
                "choose a mechanism for texts such as 'segmented'."
            )


class GridMechanism(MaskedMechanism):
    """A mechanism defined by a mask over the coordinates of cells. Subclasses define :meth:`sees`, and :meth:`tiles` for the engine."""

    engine = "gathered"
    causal = False
    traits = MaskedMechanism.traits.but(takes_sinks=False, needs_grid=True, images_need_order=False, takes_fewer_queries=False)
    per_head_tensors = ()
    listed = True
    options: GridOptions
    grid: Grid | None = None
    """The grid bound by :meth:`on`. Used by calls and methods that get no grid."""

    @abstractmethod
    def sees(self, grid: Grid, query: Places, key: Places) -> Tensor:
        """The definition: whether cells at coordinates ``query`` see cells at coordinates ``key``, bool (broadcastable)."""

    @abstractmethod
    def tiles(self, grid: Grid, device: torch.device) -> tuple[GatherTile, ...]:
        """The pairs of :meth:`sees` as tiles. The first cell has position ``grid.prefix``. :meth:`plan` adds pairs with prefix tokens."""

    @abstractmethod
    def cell_pairs(self, grid: Grid) -> int:
        """The number of pairs of :meth:`sees`."""

    @classmethod
    def covering_grid(cls, grid: Grid) -> dict[str, Any] | None:
        """Options with which the mechanism equals full softmax attention on ``grid``; ``None`` if none are known."""
        return None

    def blocks(self, grid: Grid) -> tuple[int, ...] | None:
        """Block size in cells along each axis, if cells see exactly their own block; else ``None``. Blocks are counted
        from the first cell and may be smaller at the end of an axis."""
        return None

    def check_grid(self, grid: Grid) -> None:
        """Raise :class:`GridError` if these options make no sense on ``grid``."""

    def on(self, grid: Grid) -> Self:
        """A copy of this mechanism with the mask, tiles and pairs for ``grid``. Tensors are shared."""
        bound = copy.copy(self)
        bound.grid = grid
        return bound

    def grid_of(self, call: AttentionCall | None, tokens: Any | None = None) -> Grid:
        """The grid of a call, or the grid bound by :meth:`on`.

        Raises:
            GridError: there is no grid, or its number of tokens is not ``tokens``.
        """
        grid = (None if call is None else call.one_grid()) or self.grid
        if grid is None:
            raise GridError(
                f"Mechanism {self.name!r} compares coordinates on a grid, but got no grid; for a text, choose another mechanism "
                "(`longattn mechanisms` lists them); with tensors, pass grid=(height, width) and the number of tokens before it, prefix=1."
            )
        if tokens is not None:
            grid.check(tokens)
        return grid

    def grid_for(self, q: Tensor, k: Tensor, call: AttentionCall) -> Grid:
        """:meth:`grid_of` for queries and keys.

        Raises:
            LengthError: there are not as many queries as keys, so that they cannot be the tokens of the grid.
        """
        if q.shape[2] != k.shape[2]:
            raise LengthError(
                f"Mechanism {self.name!r} reads all tokens of a grid at once, but {q.shape[2]} queries came with {k.shape[2]} keys; give "
                "as many queries as keys."
            )
        return self.grid_of(call, k.shape[2])

    def mask_on(self, grid: Grid) -> MaskMod:
        """:meth:`mask_mod` on a grid."""
        mode, prefix = self.options.prefix_tokens, grid.prefix

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            seen = self.sees(grid, grid.places(q_idx), grid.places(kv_idx))
            if not prefix:
                return seen
            from_prefix, to_prefix = q_idx < prefix, kv_idx < prefix
            if mode == GLOBAL:
                return seen | from_prefix | to_prefix
            return torch.where(from_prefix, to_prefix if mode == NONE else from_prefix, seen & ~to_prefix)

        return mod

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        return self.mask_on(self.grid_of(None))

    def visible(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return super(GridMechanism, self.on(self.grid_for(q, k, call))).visible(q, k, call)

    def kept_by_mask(self, k: Tensor, call: AttentionCall) -> KeysOrWeights:
        return super(GridMechanism, self.on(self.grid_of(call, k.shape[2]))).kept_by_mask(k, call)

    def shared_prefix(self, grid: Grid) -> int:
        """The number of prefix tokens that every cell sees: either all of them or 0."""
        return grid.prefix if self.options.prefix_tokens == GLOBAL else 0

    def covers_cells(self, grid: Grid) -> bool:
        """Whether every cell sees every cell."""
        return False

    def covers_grid(self, grid: Grid) -> bool:
        """Whether every token sees every token."""
        return self.shared_prefix(grid) == grid.prefix and self.covers_cells(grid)

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.grid is not None and self.grid.length == length and self.covers_grid(self.grid)

    def plan(self, grid: Grid, device: torch.device) -> tuple[GatherTile, ...]:
        """Tiles for the pairs of cells and of the prefix; cached."""
        return BYTE_CACHE.get((type(self), self.options, self.layer_kind, grid, device), lambda: mark_static(self._plan(grid, device)))

    @property
    def layer_kind(self) -> int:
        """A number that distinguishes layers with different pairs, such as the layer's parity."""
        return 0

    def _plan(self, grid: Grid, device: torch.device) -> tuple[GatherTile, ...]:
        tiles, mode, prefix = self.tiles(grid, device), self.options.prefix_tokens, grid.prefix
        if not prefix:
            return tiles
        front = torch.arange(prefix, device=device).view(1, 1, 1, -1)
        if mode == GLOBAL:  # the cells of every tile see the prefix as well
            cells = torch.arange(prefix, grid.length, device=device).view(1, 1, 1, -1)
            tiles = (*tiles, GatherTile(cells, front))
        everything = torch.arange(grid.length, device=device).view(1, 1, 1, -1)
        return (*tiles, GatherTile(front, front if mode == NONE else everything))

    def kind_of_call(self, grid: Grid) -> Kind:
        """The kind of call, whose paths are those of :meth:`forward`."""
        return "pairs"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        return self.attend_on(self.grid_for(q, k, call), q, k, v, call)

    def attend_on(self, grid: Grid, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """Attention of the tokens of ``grid``, ``(B, H, N, D)``."""
        path = choose(self.kind_of_call(grid), q, k, call, covered=self.covers_grid(grid))
        if path == "dense":
            return dense_attention(q, k, v, call)
        if path == "dense-masked":
            return dense_attention(q, k, v, call, mask_mod=self.mask_on(grid))
        if path == "sparse":
            return gathered_attention(q, k, v, self.plan(grid, q.device), call)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        of_prefix = self.prefix_rows(q, k, v, grid, call) if grid.prefix else None
        return self.attend_cells(path, grid, q, k, v, of_prefix, call)

    def attend_cells(
        self, path: PathName, grid: Grid, q: Tensor, k: Tensor, v: Tensor, of_prefix: Tensor | None, call: AttentionCall
    ) -> Tensor:
        """The output ``(B, H, N, D)`` by a kernel for cells, if :meth:`kind_of_call` has such paths.

        of_prefix: the output of the prefix tokens, ``(B, H, prefix, D)``, if there are any.
        """
        raise NotImplementedError

    def prefix_rows(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, call: AttentionCall) -> Tensor:
        """The output of the prefix tokens, ``(B, H, prefix, D)``. The only score term allowed is a :class:`GridBias`."""
        seen = slice(0, grid.prefix) if self.options.prefix_tokens == NONE else slice(None)
        queries, keys, values = q[:, :, : grid.prefix], k[:, :, seen], v[:, :, seen]
        places = None if call.score_mod is None else torch.arange(grid.prefix, device=q.device).view(1, 1, -1, 1)
        if call.key_mask is not None:
            call = call.with_mask(call.key_mask[:, seen])
        return dense_attention(queries, keys, values, call, q_idx=places)

    def pairs(self, length: int, causal: bool = False) -> int:
        grid = self.grid_of(None, length)
        mode, prefix, cells = self.options.prefix_tokens, grid.prefix, grid.cells
        return self.cell_pairs(grid) + prefix * (prefix + {GLOBAL: 2 * cells, READS: cells, NONE: 0}[mode])


def on_grid(mechanism: Mechanism, grid: Grid | None, check: bool = False, layer: int | None = None) -> Mechanism:
    """The mechanism bound to ``grid``, or ``mechanism`` itself if it does not depend on a grid, or tokens are on none.

    check: whether to raise :class:`GridError` if its options make no sense on ``grid``.
    layer: number of its layer, by which some mechanisms shift their windows.
    """
    if grid is None or not isinstance(mechanism, GridMechanism):
        return mechanism
    if check:
        mechanism.check_grid(grid)
    bound = mechanism.on(grid)
    bound.layer = bound.layer if layer is None else layer
    return bound


def grid_blocks(mechanism: Mechanism, grid: Grid) -> tuple[int, ...] | None:
    """:meth:`GridMechanism.blocks`; ``None`` for mechanisms that are not on a grid."""
    return mechanism.blocks(grid) if isinstance(mechanism, GridMechanism) else None
