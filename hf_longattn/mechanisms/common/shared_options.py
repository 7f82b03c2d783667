"""The options that all mechanisms share: ``exact_length``, ``order`` and ``relative``. Checks of a call's form are
here, too.

``exact_length``: full attention for short sequences, a mechanism for long ones. A sequence is a batch row from its
first to its last real token, or one packed document. Up to ``most`` tokens, it gets full attention.

``order``: mechanisms for texts, run on a grid in a token order that makes blocks and bands local. With
``order=tiles:8x8``, blocks of 64 tokens are tiles: ``segmented`` then has the windows of Swin and ViTDet, and
``bigbird`` has two-dimensional blocks. Reordering is exact: the outputs are moved back to the original order.

``relative``: relative positions as a score term. A hook adds it before ``forward``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engines.batch import Batch, SequenceSpan, first_real, in_graph, last_real, of_any_length
from ...engines.byte_cache import BYTE_CACHE
from ...engines.call import AttentionCall, AttentionFunction, clear_padding
from ...engines.score_terms import ScoreTerm, chain_score_mods, remapped
from ...engines.sequences import attend_per_sequence, rolled, stacked
from ...engines.token_grid import Grid, check_order
from ...errors import InputError, OptionError
from ...positions.relative import RelativePositions
from .capabilities import largest_distances, reads_grid


def by_length(
    in_full: AttentionFunction,
    by_mechanism: AttentionFunction,
    most: int,
    one_call: bool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: AttentionCall,
) -> Tensor:
    """Full attention (``in_full``) for sequences of at most ``most`` tokens, else ``by_mechanism``. Returns
    ``(B, H, Nq, D)``.

    Args:
        one_call: whether all longer sequences must share one call of the mechanism.
    """
    if in_graph():
        return _in_graph(in_full, by_mechanism, most, q, k, v, call)
    if call.batch is None:
        return (in_full if k.shape[2] <= most else by_mechanism)(q, k, v, call)
    batch = call.batch
    sequences = batch.sequences
    short = sum(span.length <= most for span in sequences)
    if short in (0, len(sequences)):
        return (in_full if short else by_mechanism)(q, k, v, call)
    if not one_call:
        return attend_per_sequence(
            functools.partial(by_length, in_full, by_mechanism, most, one_call), q, k, v, call, "split"
        )
    q, k, v, call = clear_padding(q, k, v, call)
    outs: dict[SequenceSpan, Tensor] = {}
    for run, is_short in ((in_full, True), (by_mechanism, False)):
        chosen = [span for span in sequences if (span.length <= most) == is_short]
        outs |= zip(chosen, stacked(run, q, k, v, call, chosen), strict=True)
    return batch.join([outs[span] for span in sequences], len(q), q.shape[2], k.shape[2])


def _in_graph(
    in_full: AttentionFunction,
    by_mechanism: AttentionFunction,
    most: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: AttentionCall,
) -> Tensor:
    """:func:`by_length` in a graph, which cannot read lengths. Both functions run on all rows, ``in_full`` on its
    first ``most`` tokens."""
    length, batch = k.shape[2], call.batch
    free = of_any_length(length)
    if batch is not None and batch.documents is not None:  # the mechanism's call refuses documents
        return by_mechanism(q, k, v, call)
    if not free and length <= most:
        return in_full(q, k, v, call)
    if not free and batch is None:
        return by_mechanism(q, k, v, call)
    if batch is None or batch.mask is None:
        batch = Batch(torch.ones(k.shape[0], length, dtype=torch.bool, device=k.device))
    mask = batch.mask
    assert mask is not None

    def first(x: Tensor, dim: int) -> Tensor:
        if free:  # the length is symbolic and may be less than `most`
            x = torch.cat([x, x.new_zeros(*x.shape[:dim], most, *x.shape[dim + 1 :])], dim)
        return x.narrow(dim, 0, most)

    def of_first(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        assert call.batch is not None
        assert call.batch.mask is not None
        short_call = call.replace(batch=Batch(first(call.batch.mask, 1))).with_term(
            lambda term: term.moved(first, lambda b, at: (b, at))
        )
        return F.pad(in_full(first(q, 2), first(k, 2), first(v, 2), short_call), (0, 0, 0, length))[:, :, :length]

    short = last_real(mask) - first_real(mask) < most
    full_call = call.for_full_attention().replace(batch=batch)
    return torch.where(
        short[:, None, None, None], rolled(of_first, q, k, v, full_call, batch), by_mechanism(q, k, v, call)
    )


def weights_by_length(in_full: Any, by_mechanism: Any, most: int, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
    """The weights ``(B, H, Nq, Nk)`` of sequences that start at index 0, by ``in_full(q, k, call)`` up to ``most``
    tokens.

    In a graph, padding may come after a sequence. A graph that does not know a sequence's length computes both kinds
    of weights.
    """
    full_call, length = call.for_full_attention(), k.shape[2]
    mask = call.key_mask if in_graph() else None
    if not of_any_length(length) and (mask is None or length <= most):
        return in_full(q, k, full_call) if length <= most else by_mechanism(q, k, call)
    mask = torch.ones(k.shape[0], length, dtype=torch.bool, device=k.device) if mask is None else mask
    short = last_real(mask) < most
    return torch.where(short[:, None, None, None], in_full(q, k, full_call), by_mechanism(q, k, call))


def full_of(mechanism: Any) -> Any:
    """The full attention for texts of up to ``sizes.max_length`` tokens; 0 = for decoding only. ``None`` without
    either option."""
    if not mechanism._full or mechanism.is_cross_attention:
        return None
    full = mechanism._full[0]
    if full.layer != mechanism.layer:
        full.layer = mechanism.layer
    return full


@contextmanager
def without_exact_length(mechanisms: Iterable[Any]) -> Iterator[None]:
    """Within the context, ignore ``exact_length``, to measure the mechanisms themselves on short texts."""
    saved = {mechanism: mechanism._full for mechanism in mechanisms}
    for mechanism in saved:
        mechanism._full = ()
    yield
    for mechanism, full in saved.items():
        mechanism._full = full


def for_length(mechanism: Any, length: int, causal: bool = False, queries: int = 0) -> Any:
    """The mechanism to run: full attention up to ``exact_length`` tokens, otherwise ``mechanism``.

    If causal: full attention for one query with ``full_decoding``, otherwise ``mechanism``."""
    full = full_of(mechanism) if not causal or queries == 1 else None
    return mechanism if full is None or (not causal and length > full.sizes.max_length) else full


def is_full(mechanism: Any, length: int, causal: bool) -> bool:
    used = for_length(mechanism, length, causal)
    return used.covers(length, causal) and not (used.capabilities.recursion and used.capabilities.recursion.memory)


def why_not_in_full(mechanism: Any) -> str:
    """Why ``mechanism`` cannot use full attention for short texts; empty if it can."""
    reasons = {
        "exists in the causal form only": mechanism.causal is True,
        "reads a grid": reads_grid(mechanism),
        "passes memory tokens from segment to segment": mechanism.capabilities.recursion is not None,
        "counts padding with these options": not mechanism.capabilities.ignores_padding,
        "adds relative positions to the scores": mechanism.relative is not None,
    }
    return next((why for why, holds in reasons.items() if holds), "")


def check_form(mechanism: Any, causal: bool, where: str) -> None:
    """Raise :class:`OptionError` if these options lack the form (causal or bidirectional) that ``where`` needs."""
    if mechanism.causal not in ("both", causal):
        chosen = "" if type(mechanism).causal == mechanism.causal else " with these options"
        raise OptionError(
            f"Mechanism {mechanism.name!r} exists only with causal={mechanism.causal}{chosen}, but {where} needs "
            f"causal={causal}; choose {'others, or ' if chosen else ''}one of "
            f"hf_longattn.list_mechanisms(causal={causal})."
        )
    if causal and mechanism.options.exact_length and full_of(mechanism) is not None:
        length = mechanism.options.exact_length
        raise OptionError(
            f"exact_length={length} is for attention in both directions, but {where} is causal; leave it out: a "
            f"causal window of {length} tokens already sees all of shorter texts (EncoderDecoderModel."
            "from_encoder_decoder_pretrained takes another attention for the decoder, "
            f"decoder_long_attention={{'mechanism': 'window', 'window': {length}}})."
        )


WeightsFunction = Callable[[Tensor, Tensor, AttentionCall], Tensor]
KeysOrWeights = Callable[[Tensor, Tensor], Tensor]
"""``(rows, scores)`` -> mask of the keys that queries attend to, ``(B, H, n, N)`` bool (broadcastable), or weights of
all keys.

``rows (n,)`` are the queries' indices. ``scores (B, H, n, N)`` are -inf for keys hidden by causality or padding; the
mask may include these keys. If one softmax runs over keys and means of keys, the result is weights ``(B, H, n, N)``,
which sum to 1 per query. The weight of a mean is divided among its keys."""


def token_order(grid: Grid, order: str, device: torch.device) -> Tensor:
    """Positions of a grid's tokens in ``order``, ``(L,)`` int64, the prefix first. An empty slot is -1.

    In the order ``tiles:…``, every tile has the same number of slots, so that a block of that size is one tile. If the
    grid's size is not a multiple of the tile's, tiles at its border have empty slots. The prefix has its own tiles.
    """

    def make() -> Tensor:
        cells, prefix = torch.arange(grid.cells).view(grid.sizes), torch.arange(grid.prefix)
        if order == "hilbert":
            cells = cells.flatten()[_hilbert(grid.sizes)]
        else:
            tile = grid.per_axis([int(size) for size in check_order(order).removeprefix("tiles:").split("x")], "order")

            # Complete the tiles at the end of each axis with empty slots, then read tile by tile.
            short = [-size % side for size, side in zip(grid.sizes, tile, strict=True)]
            cells = F.pad(cells, [pad for size in reversed(short) for pad in (0, size)], value=-1 - grid.prefix)
            counts = [size // side for size, side in zip(cells.shape, tile, strict=True)]
            cells = cells.view([size for pair in zip(counts, tile, strict=True) for size in pair])
            cells = cells.permute(*range(0, 2 * grid.rank, 2), *range(1, 2 * grid.rank, 2))
            prefix = F.pad(prefix, (0, -grid.prefix % math.prod(tile)), value=-1)
        return torch.cat([prefix, cells.flatten() + grid.prefix]).to(device)

    return BYTE_CACHE.get(("token order", grid, order, device), make)


def _hilbert(sizes: Sequence[int]) -> Tensor:
    """A grid's cells along a Hilbert curve (Skilling 2004). The curve fills the smallest power-of-two cube that holds
    the grid."""
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
    for bit_index in range(bits - 1, -1, -1):
        for axis_bits in axes:
            distance = (distance << 1) | ((axis_bits >> bit_index) & 1)
    return distance.argsort()


def in_order(order: str, run: AttentionFunction) -> AttentionFunction:
    """A function that runs ``run`` on the tokens of ``call.grid`` in ``order``.

    It raises :class:`InputError` if a call has no grid, has fewer queries than keys, or is causal.
    """

    def ordered(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        tokens = _reorder(order, q, k, call)
        q, k, v = (x.index_select(2, tokens.positions) for x in (q, k, v))
        return run(q, k, v, tokens.call).index_select(2, tokens.back)

    return ordered


def weights_in_order(order: str, weights: WeightsFunction) -> WeightsFunction:
    """:func:`in_order` for a function ``weights(q, k, call) -> (B, H, N, N)``; raises the same errors."""

    def ordered(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        tokens = _reorder(order, q, k, call)
        matrix = weights(q.index_select(2, tokens.positions), k.index_select(2, tokens.positions), tokens.call)
        return matrix.index_select(2, tokens.back).index_select(3, tokens.back)

    return ordered


def keys_or_weights(mechanism: Any, q: Tensor, k: Tensor, call: AttentionCall) -> KeysOrWeights | None:
    """:meth:`Mechanism.attended_keys` with the options ``order`` and ``exact_length`` applied; raises the errors of
    :func:`in_order`."""
    if (full := for_length(mechanism, k.shape[2], call.causal)) is not mechanism:
        mechanism, call = full, call.replace(global_mask=None)
    if (order := mechanism.options.order) is None:
        return mechanism.attended_keys(q, k, call)
    tokens = _reorder(order, q, k, call)
    ordered = mechanism.attended_keys(
        q.index_select(2, tokens.positions), k.index_select(2, tokens.positions), tokens.call
    )
    if ordered is None:
        return None
    hidden = None if tokens.call.key_mask is None else ~tokens.call.key_mask[:, None, None]

    def of_rows(rows: Tensor, scores: Tensor) -> Tensor:
        scores = scores.index_select(-1, tokens.positions)
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        keys = ordered(tokens.back[rows], scores)
        return keys.expand(*keys.shape[:-1], len(tokens.positions)).index_select(-1, tokens.back)

    return of_rows


class _Reordered(NamedTuple):
    """A reordered call. ``positions (L,)`` holds the old index of each new token, ``back (N,)`` the new index of each
    old token."""

    call: AttentionCall
    positions: Tensor
    back: Tensor


def _reorder(order: str, q: Tensor, k: Tensor, call: AttentionCall) -> _Reordered:
    grid, length = call.one_grid(), k.shape[2]
    if grid is None:
        raise InputError(
            f"order={order} needs the coordinates of tokens; pass grid=(height, width), or leave the option 'order' "
            "out."
        )
    if q.shape[2] != length or call.causal:
        raise InputError(
            f"order={order} is for whole images, in which every token may see all others, but this call "
            f"{'is causal' if call.causal else 'has fewer queries than keys'}; leave the option 'order' out."
        )
    grid.check(length)
    index = token_order(grid, order, k.device)
    holes = len(index) > length
    call = _call_at(call, k.shape[0], index.clamp(min=0), index >= 0 if holes else None)
    return _Reordered(call, index.clamp(min=0), _new_positions(index, length))


def _new_positions(index: Tensor, length: int) -> Tensor:
    """The inverse of ``index (L,)`` from :func:`token_order`: the new index of each of ``length`` tokens, ``(N,)``."""
    positions = torch.arange(len(index), device=index.device)
    return positions.new_zeros(length + 1).scatter(0, torch.where(index < 0, length, index), positions)[:length]


def in_raster_order(
    order: str, grid: Grid, q: Tensor, k: Tensor, call: AttentionCall
) -> tuple[Tensor, Tensor, AttentionCall]:
    """Undo the reordering of :func:`in_order`. Returns the queries, the keys and the call in raster order."""
    back = _new_positions(token_order(grid, order, k.device), grid.length)
    return q.index_select(2, back), k.index_select(2, back), _call_at(call, k.shape[0], back, None).replace(grid=grid)


def _call_at(call: AttentionCall, rows: int, positions: Tensor, filled: Tensor | None) -> AttentionCall:
    """``call`` in the token order ``positions (L,)``. Tokens that are not ``filled (L,)`` become padding. ``rows`` is
    the batch size."""

    def of(mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        reordered = mask.index_select(1, positions)
        return reordered if filled is None else reordered & filled

    mask, score_mod, constants = of(call.key_mask), call.score_mod, call.detached_kv
    if mask is None and filled is not None:
        mask = filled.expand(rows, -1)
    return call.replace(
        batch=Batch.of(mask),
        global_mask=of(call.global_mask),
        score_mod=remapped(
            score_mod, queries=lambda q_idx: positions[q_idx], keys=lambda b, h, kv_idx: positions[kv_idx]
        ),
        hidden_states=None if call.hidden_states is None else call.hidden_states.index_select(1, positions),
        detached_kv=None
        if constants is None
        else (constants[0].index_select(2, positions), constants[1].index_select(2, positions)),
        grid=None,
    )


def add_relative(module: Any, args: tuple[Tensor, Tensor, Tensor, AttentionCall]) -> tuple[Any, ...]:
    q, k, v, call = args
    return q, k, v, with_relative(module, q, k, call)


def relative_of(mechanism: Any, k: Tensor, call: AttentionCall) -> RelativePositions | None:
    """The mechanism's relative positions; ``None`` if they change no score of a call with keys
    ``k (B, H_kv, Nk, D)``."""
    relative: RelativePositions | None = mechanism.relative
    return relative if relative is not None and relative.changes(k.shape[2], call) else None


def with_relative(mechanism: Any, q: Tensor, k: Tensor, call: AttentionCall) -> AttentionCall:
    """``call`` with the relative positions added. Code that attends without ``forward``, such as a decode cache, calls
    ``RelativePositions.term`` itself."""
    term = None if relative_of(mechanism, k, call) is None else relative_term(mechanism, q, k, call)
    return call if term is None else call.replace(score_mod=chain_score_mods(term, call.score_mod))


def relative_term(mechanism: Any, q: Tensor, k: Tensor, call: AttentionCall) -> ScoreTerm | None:
    """The score term for ``q (B, H, Nq, D)`` at the last positions of ``k (B, H_kv, Nk, D)``, or ``None``."""
    visible = largest_distances(mechanism, q.shape[2], k.shape[2], call.causal)
    return mechanism.relative.score_term(q, k, call.causal, call.scale_for(mechanism.head_dim), visible)


def with_dense_terms(
    mechanism: Any, q: Tensor, k: Tensor, call: AttentionCall
) -> tuple[Tensor, Tensor, AttentionCall]:
    """:func:`with_relative`, with terms by their N×N definition."""
    if (relative := relative_of(mechanism, k, call)) is None:
        return q, k, call
    q_len, kv_len = q.shape[2], k.shape[2]
    positions = torch.arange(kv_len, device=q.device)[None]
    term = relative.term(
        q, k, positions[:, kv_len - q_len :], positions, call.causal, call.scale_for(mechanism.head_dim)
    )

    def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score + term[b.clamp(max=len(term) - 1), h, (q_idx - (kv_len - q_len)).clamp(min=0), kv_idx]

    return q, k, call.replace(score_mod=chain_score_mods(mod, call.score_mod))
