"""Mechanisms for texts, run on a grid in a token order that makes blocks and bands local.

With ``order=tiles:8x8``, blocks of 64 tokens are tiles: ``segmented`` then has the windows of Swin and ViTDet, and ``bigbird`` has
two-dimensional blocks. Reordering is exact: the outputs are moved back to the original order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engines.batch import Batch
from ...engines.byte_cache import BYTE_CACHE
from ...engines.call import AttentionCall, AttentionFunction
from ...engines.score_terms import remapped
from ...engines.token_grid import Grid, check_order
from ...errors import InputError
from .exact import for_length

WeightsFunction = Callable[[Tensor, Tensor, AttentionCall], Tensor]
KeysOrWeights = Callable[[Tensor, Tensor], Tensor]
"""``(rows, scores)`` -> mask of the keys that queries attend to, ``(B, H, n, N)`` bool (broadcastable), or weights of all keys.

``rows (n,)`` are the queries' indices. ``scores (B, H, n, N)`` are -inf for keys hidden by causality or padding; the mask may include
these keys. If one softmax runs over keys and means of keys, the result is weights ``(B, H, n, N)``, which sum to 1 per query. The weight of
a mean is divided among its keys."""


def token_order(grid: Grid, order: str, device: torch.device) -> Tensor:
    """Positions of a grid's tokens in ``order``, ``(L,)`` int64, the prefix first. An empty slot is -1.

    In the order ``tiles:…``, every tile has the same number of slots, so that a block of that size is one tile. If the grid's size is not a
    multiple of the tile's, tiles at its border have empty slots. The prefix has its own tiles.
    """
    return BYTE_CACHE.get(("token order", grid, order, device), lambda: _token_order(grid, order).to(device))


def _token_order(grid: Grid, order: str) -> Tensor:
    cells = torch.arange(grid.cells).view(grid.sizes)
    prefix = torch.arange(grid.prefix)
    if order == "columns":
        cells = cells.permute(*reversed(range(grid.rank)))
    elif order == "hilbert":
        cells = cells.flatten()[_hilbert(grid.sizes)]
    elif order != "raster":
        tile = grid.per_axis([int(size) for size in check_order(order).removeprefix("tiles:").split("x")], "order")
        short = [-size % side for size, side in zip(grid.sizes, tile, strict=True)]
        cells = F.pad(cells, [pad for size in reversed(short) for pad in (0, size)], value=-1 - grid.prefix)
        counts = [size // side for size, side in zip(cells.shape, tile, strict=True)]
        cells = cells.view([size for pair in zip(counts, tile, strict=True) for size in pair])
        cells = cells.permute(*range(0, 2 * grid.rank, 2), *range(1, 2 * grid.rank, 2))
        prefix = F.pad(prefix, (0, -grid.prefix % math.prod(tile)), value=-1)
    return torch.cat([prefix, cells.flatten() + grid.prefix])


def _hilbert(sizes: Sequence[int]) -> Tensor:
    """A grid's cells along a Hilbert curve (Skilling 2004). The curve fills the smallest power-of-two cube that holds the grid."""
    rank, bits = len(sizes), max(1, max(size - 1 for size in sizes).bit_length())
    axes = list(torch.stack(torch.meshgrid(*map(torch.arange, sizes), indexing="ij"), -1).flatten(0, -2).unbind(-1))
    high = 1 << (bits - 1)
    bit = high
    while bit > 1:  # the loop "inverse undo" of Skilling's code, from the highest bit
        low = bit - 1
        for axis in range(rank):
            flip = (axes[axis] & bit) != 0
            swapped = (axes[0] ^ axes[axis]) & low
            first = torch.where(flip, axes[0] ^ low, axes[0] ^ swapped)
            axes[axis] = torch.where(flip, axes[axis], axes[axis] ^ swapped) if axis else first
            axes[0] = first
        bit >>= 1
    for axis in range(1, rank):  # Gray code
        axes[axis] = axes[axis] ^ axes[axis - 1]
    gray, bit = torch.zeros_like(axes[0]), high
    while bit > 1:
        gray = torch.where((axes[-1] & bit) != 0, gray ^ (bit - 1), gray)
        bit >>= 1
    axes = [axis ^ gray for axis in axes]
    distance = torch.zeros_like(axes[0])
    for place in range(bits - 1, -1, -1):
        for axis_bits in axes:
            distance = (distance << 1) | ((axis_bits >> place) & 1)
    return distance.argsort()


def in_order(order: str, run: AttentionFunction) -> AttentionFunction:
    """A function that runs ``run`` on the tokens of ``call.grid`` in ``order``.

    It raises :class:`InputError` if a call has no grid, has fewer queries than keys, or is causal.
    """

    def ordered(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        tokens = _reorder(order, q, k, call)
        q, k, v = (x.index_select(2, tokens.places) for x in (q, k, v))
        return run(q, k, v, tokens.call).index_select(2, tokens.back)

    return ordered


def weights_in_order(order: str, weights: WeightsFunction) -> WeightsFunction:
    """:func:`in_order` for a function ``weights(q, k, call) -> (B, H, N, N)``; raises the same errors."""

    def ordered(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        tokens = _reorder(order, q, k, call)
        matrix = weights(q.index_select(2, tokens.places), k.index_select(2, tokens.places), tokens.call)
        return matrix.index_select(2, tokens.back).index_select(3, tokens.back)

    return ordered


def keys_or_weights(mechanism: Any, q: Tensor, k: Tensor, call: AttentionCall) -> KeysOrWeights | None:
    """:meth:`Mechanism.attended_keys` with the options ``order`` and ``exact_length`` applied; raises the errors of :func:`in_order`."""
    if (full := for_length(mechanism, k.shape[2], call.causal)) is not mechanism:
        mechanism, call = full, call.replace(global_mask=None)
    if (order := mechanism.options.order) is None:
        return mechanism.attended_keys(q, k, call)
    tokens = _reorder(order, q, k, call)
    ordered = mechanism.attended_keys(q.index_select(2, tokens.places), k.index_select(2, tokens.places), tokens.call)
    if ordered is None:
        return None
    hidden = None if tokens.call.key_mask is None else ~tokens.call.key_mask[:, None, None]

    def of_rows(rows: Tensor, scores: Tensor) -> Tensor:
        scores = scores.index_select(-1, tokens.places)
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        keys = ordered(tokens.back[rows], scores)
        return keys.expand(*keys.shape[:-1], len(tokens.places)).index_select(-1, tokens.back)

    return of_rows


class _Reordered(NamedTuple):
    """A reordered call. ``places (L,)`` holds the old index of each new token, ``back (N,)`` the new index of each old token."""

    call: AttentionCall
    places: Tensor
    back: Tensor


def _reorder(order: str, q: Tensor, k: Tensor, call: AttentionCall) -> _Reordered:
    grid, length = call.one_grid(), k.shape[2]
    if grid is None:
        raise InputError(f"order={order} needs the coordinates of tokens; pass grid=(height, width), or leave the option 'order' out.")
    if q.shape[2] != length or call.causal:
        raise InputError(
            f"order={order} is for whole images, in which every token may see all others, but this call "
            f"{'is causal' if call.causal else 'has fewer queries than keys'}; leave the option 'order' out."
        )
    grid.check(length)
    index = token_order(grid, order, k.device)
    holes = len(index) > length
    call = _call_at(call, k.shape[0], index.clamp(min=0), index >= 0 if holes else None)
    return _Reordered(call, index.clamp(min=0), _places_of_tokens(index, length))


def _places_of_tokens(index: Tensor, length: int) -> Tensor:
    """The inverse of ``index (L,)`` from :func:`token_order`: the new index of each of ``length`` tokens, ``(N,)``."""
    places = torch.arange(len(index), device=index.device)
    return places.new_zeros(length + 1).scatter(0, torch.where(index < 0, length, index), places)[:length]


def in_raster_order(order: str, grid: Grid, q: Tensor, k: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor, AttentionCall]:
    """Undo the reordering of :func:`in_order`. Returns the queries, the keys and the call in raster order."""
    back = _places_of_tokens(token_order(grid, order, k.device), grid.length)
    return q.index_select(2, back), k.index_select(2, back), _call_at(call, k.shape[0], back, None).replace(grid=grid)


def _call_at(call: AttentionCall, rows: int, places: Tensor, filled: Tensor | None) -> AttentionCall:
    """``call`` in the token order ``places (L,)``. Tokens that are not ``filled (L,)`` become padding. ``rows`` is the batch size."""

    def of(mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        reordered = mask.index_select(1, places)
        return reordered if filled is None else reordered & filled

    mask, score_mod, constants = of(call.key_mask), call.score_mod, call.detached_kv
    if mask is None and filled is not None:
        mask = filled.expand(rows, -1)
    return call.replace(
        batch=Batch.of(mask),
        global_mask=of(call.global_mask),
        score_mod=remapped(score_mod, queries=lambda q_idx: places[q_idx], keys=lambda b, h, kv_idx: places[kv_idx]),
        hidden_states=None if call.hidden_states is None else call.hidden_states.index_select(1, places),
        detached_kv=None if constants is None else (constants[0].index_select(2, places), constants[1].index_select(2, places)),
        grid=None,
    )
