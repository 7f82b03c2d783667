"""The path ``cpu-halo``: overlapping windows on a grid, by PyTorch's fused CPU kernel.

The grid is cut into tiles of queries. The keys of a tile are its own cells and a halo around them. A row of tiles (on a video, along the
last axis) is a strip. Its keys are copied once, column by column, so that the keys of each tile are one contiguous run. The runs of
neighbouring tiles overlap, so they are a strided *view* (``as_strided``) of the copy. One kernel call runs all tiles of a strip that have
the same mask. Each key is copied (1 + halo / side) times per axis other than the last, instead of once for every tile that sees it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...naming import OPERATORS
from ..common.axis_tiles import AxisClass, AxisTiles, TileGroup, axis_tiles, split_windows, tile_sides
from ..common.byte_cache import BYTE_CACHE
from ..common.context import DispatchContext
from ..common.derivatives import first_derivatives_only, one_gradient_at_a_time
from ..common.grid import Grid
from ..common.score_terms import NO_GRID_BIAS, GridBias, tile_distances
from .flash import (
    MAX_PLAIN_KEYS,
    additive_mask,
    few_keys,
    few_keys_backward,
    flash,
    flash_backward,
    like_bias,
    mask_dtype,
    merge_into,
    padding_of,
    score_gradient,
    token_major,
    zero_unseen,
)
from .flash import (
    why_not as why_no_kernel,
)

FORWARD_QUERIES, BACKWARD_KEYS = 24576, 24576
"""Maximum queries per forward call, and keys per backward call, over all heads. Results then stay in the cache."""
MAX_SHARED_CELLS = 1 << 17
"""Maximum entries of a cached mask."""


def why_not(context: DispatchContext) -> str | None:
    """Why this path does not run, as a clause. ``None`` if it may run."""
    return why_no_kernel(context) or (None if "halo" in context.call.term.engines else NO_GRID_BIAS)


class _Settings(NamedTuple):
    """The settings of a call, and the table of its bias."""

    grid: Grid
    tiles: tuple[AxisTiles, ...]
    shared: int
    scale: float
    bias: GridBias | None

    @classmethod
    def of(
        cls, bias: Tensor | None, sizes: Sequence[int], prefix: int, low: Sequence[int], high: Sequence[int], steps: Sequence[int],
        shared: int, bias_sizes: Sequence[int], bias_steps: Sequence[int], scale: float, dtype: torch.dtype,
    ) -> _Settings:  # fmt: skip
        grid = Grid(tuple(sizes), prefix)
        windows = split_windows(grid, low, high, steps)
        tiles = tuple(axis_tiles(axis, side) for axis, side in zip(windows, tile_sides(windows), strict=True))
        term = None if bias is None else GridBias(bias.detach().to(dtype), tuple(bias_sizes), tuple(bias_steps), grid)
        return cls(grid, tiles, shared, scale, term)

    def of_shared(self) -> Tensor | None:
        """The bias of the prefix tokens that all cells see, ``(1, H, 1, 1)``."""
        bias = None if self.bias is None else self.bias.of_pairs(1)
        return None if bias is None else bias[None, :, None, None]


class _Tile(NamedTuple):
    """A tile of every axis but the last."""

    classes: tuple[AxisClass, ...]
    groups: tuple[TileGroup, ...]

    @property
    def queries(self) -> tuple[slice, ...]:
        """Coordinates of the tile's queries on every axis."""
        return tuple(part.places(group.first, group.size) for part, group in zip(self.classes, self.groups, strict=True))

    @property
    def keys(self) -> tuple[slice, ...]:
        return tuple(part.places(group.key_first, group.key_size) for part, group in zip(self.classes, self.groups, strict=True))


def _leading(tiles: Sequence[AxisTiles]) -> Iterator[_Tile]:
    """The tiles of every axis but the last."""
    by_axis = [[(part, tile) for part in axis for group in part.groups for tile in group.single_tiles()] for axis in tiles[:-1]]
    for chosen in itertools.product(*by_axis):
        yield _Tile(tuple(part for part, _ in chosen), tuple(tile for _, tile in chosen))


class _Buffers:
    """Copies of strips, in memory that the next strip reuses."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def columns(self, name: str, x: Tensor) -> Tensor:
        """Copy ``x (H, *leading, columns, …)`` column by column, to ``(columns · leading, H, …)``."""
        rank = x.dim() - (1 if name in ("lse", "padding") else 2)
        x = x.permute(rank, *range(1, rank), 0, *range(rank + 1, x.dim()))
        size = x.numel()
        memory = self._memory.get(name)
        if memory is None or memory.numel() < size:
            memory = self._memory[name] = x.new_empty(size)
        copy = memory[:size].view(x.shape)
        return copy.copy_(x).flatten(0, rank - 1)


class _Strip:
    """One strip: a tile of the leading axes, with a residue class of the last."""

    def __init__(self, settings: _Settings, tile: _Tile, last: AxisClass) -> None:
        self.settings, self.tile, self.last = settings, tile, last
        columns = slice(last.residue, None, last.step)
        self.queries, self.keys = (slice(None), *tile.queries, columns), (slice(None), *tile.keys, columns)
        self.depth = math.prod(group.size for group in tile.groups)
        self.key_depth = math.prod(group.key_size for group in tile.groups)

    def runs(self, copy: Tensor, group: TileGroup, of_keys: bool) -> Tensor:
        """The tokens of a group's tiles, ``(tiles, H, T, …)``, as a view of a strip's copy ``(tokens, H, …)``."""
        depth, first, size = (self.key_depth, group.key_first, group.key_size) if of_keys else (self.depth, group.first, group.size)
        by_token, by_head, *inner = copy.stride()
        shape = (group.tiles, copy.shape[1], size * depth, *copy.shape[2:])
        strides = (group.size * depth * by_token, by_head, by_token, *inner)
        return copy.as_strided(shape, strides, copy.storage_offset() + first * depth * by_token)

    def groups(self, heads: int, backward: bool) -> Iterator[TileGroup]:
        """The tiles along the last axis, as many at a time as fit a call."""
        for group in self.last.groups:
            tokens = heads * (group.key_size * self.key_depth if backward else group.size * self.depth)
            most = max(1, (BACKWARD_KEYS if backward else FORWARD_QUERIES) // tokens)
            for start in range(0, group.tiles, most):
                yield group.part(start, min(most, group.tiles - start))

    def on_grid(self, x: Tensor, group: TileGroup) -> Tensor:
        """The queries of a group in ``x (H, *sizes, …)``, as a view ``(tiles, H, columns, *leading, …)``."""
        where = (slice(None), *self.tile.queries, self.last.places(group.first, group.tiles * group.size))
        return self._by_tile(x[where], group)

    def _by_tile(self, view: Tensor, group: TileGroup) -> Tensor:
        leading = len(self.tile.groups)
        view = view.unflatten(1 + leading, (group.tiles, view.shape[1 + leading] // group.tiles))
        return view.permute(1 + leading, 0, 2 + leading, *range(1, 1 + leading), *range(3 + leading, view.dim()))

    def write(self, into: Tensor, group: TileGroup, part: Tensor, add: bool = False) -> None:
        """Write results ``(tiles, H, T, …)`` of a group's queries to ``into (H, *sizes, …)``."""
        target = self.on_grid(into, group)
        part = part.reshape(target.shape)
        target.add_(part) if add else target.copy_(part)

    def add_to_keys(self, into: Tensor, group: TileGroup, part: Tensor) -> None:
        """Add ``part (tiles, H, keys, D)`` to ``into (H, *sizes, D)``. Tiles overlap, so a few columns are added at a time."""
        sizes = [tile.key_size for tile in self.tile.groups]
        part = part.reshape(*part.shape[:2], group.key_size, *sizes, part.shape[-1])
        width = group.size if group.tiles > 1 else group.key_size
        for first in range(0, group.key_size, width):
            size = min(width, group.key_size - first)
            self._add_columns(into, group, first, size, part[:, :, first : first + size])

    def _add_columns(self, into: Tensor, group: TileGroup, first: int, size: int, part: Tensor) -> None:
        """Add ``part (tiles, H, size, *leading, D)`` to ``size`` key columns of each tile, from ``first`` on. Columns must not overlap."""
        start, before = group.key_first + first, group.tiles - 1
        if size < group.size and before:  # narrower than a tile: the other columns of the last tile may lie beyond the grid
            where = (slice(None), *self.tile.keys, self.last.places(start, before * group.size))
            self._by_tile(into[where], group.part(0, before))[:, :, :size].add_(part[:before])
            start, group, part = start + before * group.size, group.part(before, 1), part[before:]
        where = (slice(None), *self.tile.keys, self.last.places(start, group.tiles * size))
        self._by_tile(into[where], group).add_(part)

    def _along(self, group: TileGroup) -> list[TileGroup]:
        """The tiles of all axes in token order of a run: the last axis first."""
        return [group, *self.tile.groups]

    def mask(self, group: TileGroup, dtype: torch.dtype) -> Tensor | None:
        """The additive mask ``(1, 1, T, keys)`` of all tiles of a group; ``None`` where nothing is hidden."""
        tiles = self._along(group)
        patterns = tuple((tile.seen, tile.size, tile.key_size) for tile in tiles)
        if not any(seen for seen, _, _ in patterns):
            return None
        cells = self.depth * self.key_depth * group.size * group.key_size
        if cells > MAX_SHARED_CELLS:
            return _tile_mask(patterns, dtype)
        return BYTE_CACHE.get(("mask of a tile", patterns, dtype), lambda: _tile_mask(patterns, dtype))

    def entries(self, group: TileGroup, bias: GridBias) -> Tensor:
        """The entries of the bias for the pairs of a tile, ``(T, keys)``."""
        tiles = self._along(group)
        steps = [self.last.step, *(part.step for part in self.tile.classes)]
        sizes, key_sizes = [tile.size for tile in tiles], [tile.key_size for tile in tiles]
        distances = tile_distances(sizes, key_sizes, [tile.ahead for tile in tiles], steps)
        entries = bias.entries([*distances[1:], distances[0]])
        return entries.expand([*sizes, *key_sizes]).reshape(math.prod(sizes), math.prod(key_sizes))


def _tile_mask(patterns: Sequence[tuple[tuple[tuple[int, int], ...], int, int]], dtype: torch.dtype) -> Tensor:
    """The additive mask ``(1, 1, T, keys)`` of a tile. ``patterns``: seen keys, queries and keys along every axis."""
    rank, mask = len(patterns), torch.zeros((1,) * (2 * len(patterns)), dtype=dtype)
    for axis, (seen, size, key_size) in enumerate(patterns):
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = size, key_size
        if seen:
            ends = torch.tensor(seen)
            keys = torch.arange(key_size)
            hidden = (keys < ends[:, :1]) | (keys > ends[:, 1:])
            mask = mask + additive_mask(hidden, dtype).view(shape)
        else:
            mask = mask.expand([max(a, b) for a, b in zip(mask.shape, shape, strict=True)])
    return mask.flatten(rank, -1).flatten(0, rank - 1)[None, None].contiguous()


class _Call(NamedTuple):
    """One call of the kernel."""

    group: TileGroup
    mask: Tensor | None
    entries: Tensor | None
    """The entries of the bias for its pairs, if there is a bias."""


class _Masks:
    """The masks of calls, with bias and padding. The bias of a kind of tile is cached for later strips."""

    def __init__(self, settings: _Settings, dtype: torch.dtype) -> None:
        self.bias, self.dtype = settings.bias, dtype
        self.biased: dict[Any, tuple[Tensor, Tensor]] = {}

    def of(self, strip: _Strip, group: TileGroup, padding: Tensor | None) -> _Call:
        entries = None
        if self.bias is None:
            mask = strip.mask(group, self.dtype)
        else:
            mask, entries = self._with_bias(strip, group, self.bias)
        if padding is not None:
            hidden = strip.runs(padding, group, True)[:, :, None]
            if bool(hidden.any()):
                mask = hidden.contiguous() if mask is None else mask + hidden
        return _Call(group, mask, entries)

    def _with_bias(self, strip: _Strip, group: TileGroup, bias: GridBias) -> tuple[Tensor, Tensor]:
        tiles = [group, *strip.tile.groups]
        key = tuple((tile.seen, tile.size, tile.key_size, tile.ahead) for tile in tiles)
        if key not in self.biased:
            entries, mask = strip.entries(group, bias), strip.mask(group, self.dtype)
            term = bias.over(entries)[None]
            self.biased[key] = (term if mask is None else term.add_(mask), entries)
        return self.biased[key]


def _cells(x: Tensor, item: int, grid: Grid) -> Tensor:
    """The cells of one batch item of ``x (B, H, N, …)``, ``(H, *sizes, …)``."""
    return x[item, :, x.shape[2] - grid.cells :].unflatten(1, grid.sizes)


@torch.library.custom_op(f"{OPERATORS}::cpu_halo", mutates_args=(), device_types="cpu")
def cpu_halo(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, bias: Tensor | None, sizes: Sequence[int], prefix: int, low: Sequence[int],
    high: Sequence[int], steps: Sequence[int], shared: int, bias_sizes: Sequence[int], bias_steps: Sequence[int], scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention of grid cells over their windows and the shared prefix tokens.

    Args:
        q, k, v: ``(B, H, N, D)`` of the grid's tokens.
        key_mask: ``(B, N)`` bool, True = real token, or None.
        bias, bias_sizes, bias_steps: the table, sizes and dilation of a :class:`GridBias`.
        sizes, prefix: the grid.
        low, high, steps: the windows of all axes, one axis after the other, and the step of each axis, as in :class:`AxisWindows`.
        shared: how many of the last prefix tokens every cell sees.
    Returns:
        output ``(B, H, cells, D)``, stored token-major, and log-sum-exp ``(B, H, cells)``, 0 where a cell sees nothing.
    """
    dtype = mask_dtype(q)
    settings = _Settings.of(bias, sizes, prefix, low, high, steps, shared, bias_sizes, bias_steps, scale, dtype)
    out, lse = _empty_results(q, settings.grid.cells)
    buffers, masks = _Buffers(), _Masks(settings, dtype)
    for item in range(q.shape[0]):
        on_grid = [_cells(x, item, settings.grid) for x in (q, k, v)]
        into = [_cells(x, item, settings.grid) for x in (out, lse)]
        padding = padding_of(key_mask, item, dtype)
        for strip in _strips(settings):
            copies = _copies(strip, buffers, ("q", "k", "v"), on_grid)
            hidden = _padding(strip, buffers, padding)
            for group in strip.groups(q.shape[1], backward=False):
                call = masks.of(strip, group, hidden)
                inputs = [strip.runs(copy, group, name != "q") for name, copy in zip("qkv", copies, strict=True)]
                for result, part in zip(into, flash(*inputs, attn_mask=call.mask, scale=scale), strict=True):
                    strip.write(result, group, part)
    if shared:
        of_shared = slice(prefix - shared, prefix)
        keys, values = k[:, :, of_shared], v[:, :, of_shared]
        mask = _shared_mask(settings, key_mask, dtype)
        if shared > MAX_PLAIN_KEYS:
            mask = _for_kernel(mask, q)
            merge_into(out, lse, *flash(q[:, :, prefix:], keys, values, attn_mask=mask, scale=scale))
        else:
            merge_into(out, lse, *few_keys(q[:, :, prefix:], keys, values, mask, scale))
    if key_mask is not None:
        zero_unseen(out, lse)
    return out, lse


def _strips(settings: _Settings) -> Iterator[_Strip]:
    for tile in _leading(settings.tiles):
        for last in settings.tiles[-1]:
            yield _Strip(settings, tile, last)


def _copies(strip: _Strip, buffers: _Buffers, names: Sequence[str], tensors: Sequence[Tensor]) -> list[Tensor]:
    return [buffers.columns(name, x[strip.keys if name in ("k", "v") else strip.queries]) for name, x in zip(names, tensors, strict=True)]


def _padding(strip: _Strip, buffers: _Buffers, padding: Tensor | None) -> Tensor | None:
    """The additive mask of padding ``(tokens, 1)`` of a strip's keys; ``None`` where none is padding."""
    if padding is None:
        return None
    grid = strip.settings.grid
    copy = buffers.columns("padding", padding[grid.prefix :].view(1, *grid.sizes)[strip.keys])
    return copy if bool(copy.any()) else None


def _shared_mask(settings: _Settings, key_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The additive mask ``(B or 1, H or 1, 1, shared)`` of the prefix tokens that all cells see."""
    mask, prefix = settings.of_shared(), settings.grid.prefix
    if key_mask is None:
        return mask
    padding = additive_mask(~key_mask[:, prefix - settings.shared : prefix], dtype)[:, None, None]
    return padding if mask is None else padding + mask


def _for_kernel(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """The mask copied for every head, as the kernel requires."""
    return None if mask is None else mask.expand(len(q), q.shape[1], 1, -1).contiguous()


@torch.library.custom_op(f"{OPERATORS}::cpu_halo_backward", mutates_args=(), device_types="cpu")
def cpu_halo_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, key_mask: Tensor | None, bias: Tensor | None,
    sizes: Sequence[int], prefix: int, low: Sequence[int], high: Sequence[int], steps: Sequence[int], shared: int,
    bias_sizes: Sequence[int], bias_steps: Sequence[int], scale: float, of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of :func:`cpu_halo` with respect to q, k, v and the bias. They are accumulated in float32 at least. The bias gradient is
    empty without ``of_bias``."""
    dtype = mask_dtype(q)
    settings = _Settings.of(bias, sizes, prefix, low, high, steps, shared, bias_sizes, bias_steps, scale, dtype)
    sums = [x.zero_() for x in token_major(dtype, q, k, v)]
    dbias = like_bias(q, bias if of_bias else None).zero_()
    if shared:
        _shared_backward(settings, key_mask, grad, q, k, v, out, lse, sums, dbias if of_bias else None)
    buffers, masks = _Buffers(), _Masks(settings, dtype)
    names = ("grad", "q", "k", "v", "out", "lse")
    for item in range(q.shape[0]):
        on_grid = [_cells(x, item, settings.grid) for x in (grad, q, k, v, out, lse)]
        dq, dk, dv = (_cells(x, item, settings.grid) for x in sums)
        padding = padding_of(key_mask, item, dtype)
        for strip in _strips(settings):
            copies = _copies(strip, buffers, names, on_grid)
            hidden = _padding(strip, buffers, padding)
            for group in strip.groups(q.shape[1], backward=True):
                call = masks.of(strip, group, hidden)
                inputs = [strip.runs(copy, group, name in ("k", "v")) for name, copy in zip(names, copies, strict=True)]
                if of_bias and call.entries is not None:
                    of_scores = score_gradient(call.mask, scale, *inputs)[0].sum(0)
                    dbias.index_add_(1, call.entries.flatten(), of_scores.flatten(1).to(dbias.dtype))
                parts = flash_backward(*inputs, 0.0, False, attn_mask=call.mask, scale=scale)
                strip.write(dq, group, parts[0], add=shared > 0)
                strip.add_to_keys(dk, group, parts[1])
                strip.add_to_keys(dv, group, parts[2])
    dq, dk, dv = (x.to(q.dtype) for x in sums)
    return dq, dk, dv, dbias


def _shared_backward(
    settings: _Settings, key_mask: Tensor | None, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    sums: Sequence[Tensor], dbias: Tensor | None,
) -> None:  # fmt: skip
    """Add the gradients of the pairs of cells and shared prefix tokens."""
    prefix, mask = settings.grid.prefix, _shared_mask(settings, key_mask, lse.dtype)
    of_shared = slice(prefix - settings.shared, prefix)
    inputs = (grad, q[:, :, prefix:], k[:, :, of_shared], v[:, :, of_shared], out, lse)
    if dbias is not None and settings.bias is not None and settings.bias.has_prefix:
        dbias[:, -2] += score_gradient(mask, settings.scale, *inputs)[0].sum((0, 2, 3))
    if settings.shared > MAX_PLAIN_KEYS:
        parts = flash_backward(*inputs, 0.0, False, attn_mask=_for_kernel(mask, q), scale=settings.scale)
    else:
        parts = few_keys_backward(mask, settings.scale, *inputs)
    for total, part, tokens in zip(sums, parts, (slice(prefix, None), of_shared, of_shared), strict=True):
        total[:, :, tokens].add_(part)


def _empty_results(q: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Uninitialised output ``(B, H, cells, D)`` and log-sum-exp ``(B, H, cells)``, stored token-major."""
    lse = q.new_empty(q.shape[0], cells, q.shape[1], dtype=mask_dtype(q)).transpose(1, 2)
    return q.new_empty(q.shape[0], cells, q.shape[1], q.shape[3]).transpose(1, 2), lse


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, bias, *ctx.settings = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, key_mask, bias)


@one_gradient_at_a_time()
def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    *tensors, bias = ctx.saved_tensors
    of_bias = bias is not None and ctx.needs_input_grad[4]
    dq, dk, dv, dbias = cpu_halo_backward(grad, *tensors, bias, *ctx.settings, of_bias)
    return first_derivatives_only((dq, dk, dv, None, dbias.to(bias.dtype) if of_bias else None, *[None] * len(ctx.settings)))


cpu_halo.register_fake(lambda q, k, v, key_mask, bias, sizes, *_: _empty_results(q, math.prod(sizes)))
cpu_halo_backward.register_fake(
    lambda _grad, q, k, v, _out, _lse, _mask, bias, *settings: (
        *token_major(q.dtype, q, k, v),
        like_bias(q, bias if settings[-1] else None),
    )
)
cpu_halo.register_autograd(_backward, setup_context=_setup_context)
