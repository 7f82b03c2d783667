"""Arguments of an engine: visible pairs (band, tiles), score terms, other settings, and sequence alignment.

Mechanisms see sequences that start at index 0. :func:`attend_per_sequence` moves them there before a mechanism runs, in one of five ways
that :mod:`hf_longattn.engines.dispatch` chooses from:

- **masked**: unchanged, with a key mask, if there is no left padding or only distances matter (short inputs, a GPU, a graph);
- **split**: every sequence runs alone, as a view without a mask. A padded batch then costs as much as its real tokens, and packed
  documents give bit for bit their output alone. Mostly on the CPU;
- **stacked**: packed documents are gathered into the rows of a right-padded batch, and back: one call, or up to three if their lengths
  differ much. On a GPU, where a call per document would cost more than the padding. On any device in one call, if a mechanism draws or
  learns something once per call;
- **packed**: unchanged, if the mechanism keeps documents apart by itself. On the CPU each document gives bit for bit its output alone,
  without copying documents together; on a GPU, operations run on whole rows;
- **rolled**: each row is rolled left, so that left padding becomes right padding. Tensor operations only, mostly for GPUs and graphs.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import GridError, MaskError
from .axis_term import AxisTerm
from .batch import Batch, DocumentLabels, SequenceSpan, all_finite, first_real, in_graph, nothing_seen, roll_left, wrapped
from .byte_cache import BYTE_CACHE
from .document_rows import DocumentRows, Groups, Stacking, document_groups
from .grid import Grid
from .grid_bias import GridBias

MaskMod = Callable[[Any, Any, Any, Any], Any]
"""``mask_mod(b, h, q_idx, kv_idx) -> bool tensor``, as in ``torch.nn.attention.flex_attention``."""
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""``score_mod(score, b, h, q_idx, kv_idx) -> score``, as in ``torch.nn.attention.flex_attention``."""
UNBOUNDED = 1 << 40


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A band: query i visits the keys ``i - left … i + right``. With ``has_globals`` every query also visits the global columns; with
    ``global_rows`` the global tokens see every key in turn."""

    left: int
    right: int
    causal: bool
    has_globals: bool = False
    global_rows: bool = True

    @classmethod
    def window(cls, width: int, causal: bool, has_globals: bool = False, global_rows: bool = True) -> Pattern:
        """A window of total ``width``. It is half on each side, or, when causal, all of it back (the query included)."""
        back, ahead = (width - 1, 0) if causal else (width // 2, width // 2)
        return cls(back, ahead, causal, has_globals, global_rows)

    @classmethod
    def everything(cls, causal: bool) -> Pattern:
        """All keys, or all earlier ones when causal."""
        return cls(UNBOUNDED, 0 if causal else UNBOUNDED, causal)

    @property
    def width(self) -> int:
        """Keys in the band of one query."""
        return self.left + self.right + 1

    @property
    def bounded(self) -> bool:
        """Whether the band is finite on both sides. Most of a long input is then outside."""
        return max(self.left, self.right) < UNBOUNDED

    def covers(self, q_len: int, kv_len: int) -> bool:
        """Whether the band leaves no key out. The queries are the last ``q_len`` of ``kv_len`` positions."""
        return self.left >= kv_len - 1 and (self.causal or self.right >= q_len - 1)

    def band_mod(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        """The band as a ``mask_mod``."""
        return (q_idx - kv_idx <= self.left) & (kv_idx - q_idx <= self.right)

    def visible_mod(self, global_mask: Tensor | None) -> MaskMod:
        """The ``mask_mod`` of the band and the global tokens, without padding. Causality bounds the global part as well."""
        if global_mask is None:
            return self.band_mod

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            seen = self.band_mod(b, h, q_idx, kv_idx) | global_mask[b, kv_idx]
            if self.global_rows:
                seen = seen | global_mask[b, q_idx]
            return seen & (kv_idx <= q_idx) if self.causal else seen

        return mod


@dataclasses.dataclass(frozen=True)
class DistanceBias:
    """A ``score_mod`` of the distance and the head: adds ``table[h, (q_idx - kv_idx) + ahead]``.

    The CPU's band engine adds the table to its blocks; to every other engine it is an ordinary ``score_mod``.

    table: ``(H, back + ahead + 1)`` for the distances ``-ahead … back``; distances beyond these are clamped.
    """

    table: Tensor
    ahead: int

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score + self.table[h, (q_idx - kv_idx + self.ahead).clamp(0, self.table.shape[1] - 1)]

    def of_heads(self, heads: Sequence[int]) -> DistanceBias:
        """The bias of some heads, renumbered from 0."""
        return DistanceBias(take_heads(self.table, heads, 0), self.ahead)

    def over(self, distance: Tensor) -> Tensor:
        """The bias ``(H, rows, columns)`` for distances ``(rows, columns)``."""
        return self.table[:, (distance + self.ahead).clamp(0, self.table.shape[1] - 1)]

    def add_gradient(self, total: Tensor, distance: Tensor, of_scores: Tensor) -> None:
        """Add the gradient of scores ``(H, rows, columns)`` at these distances to ``total``. It is shaped like the table."""
        index = (distance + self.ahead).clamp(0, self.table.shape[1] - 1)
        total.index_add_(1, index.flatten(), of_scores.flatten(1).to(total.dtype))


class BatchTerm(ABC):
    """A ``score_mod`` that holds values per token of a whole batch."""

    @abstractmethod
    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """The score with the term, as every ``score_mod``."""

    @abstractmethod
    def of_heads(self, heads: Sequence[int]) -> BatchTerm:
        """The term of some heads, renumbered from 0."""

    @abstractmethod
    def of_sequence(self, row: int, start: int, stop: int) -> BatchTerm:
        """The term of the keys ``start … stop - 1`` of one row, and of the queries among them."""

    @abstractmethod
    def moved(self, move: Callable[[Tensor, int], Tensor]) -> BatchTerm:
        """The term after its tokens moved, with as many queries as keys.

        move: ``move(x, dim)`` moves the tokens on axis ``dim`` of ``x (B, …)``.
        """


class TokenTerm(ABC):
    """A ``score_mod`` computed from queries and keys. It can be rebuilt for another part of the sequence."""

    @abstractmethod
    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """The score with the term of this object's own tokens, as every ``score_mod``."""

    @abstractmethod
    def of(self, q: Tensor, k: Tensor, heads: Sequence[int]) -> TokenTerm:
        """The term of ``q (B, h, Nq, D)`` and ``k (B, h, Nk, D)``, for h of this term's heads. Queries are the last Nq positions."""

    def of_heads(self, heads: Sequence[int], device: torch.device) -> TokenTerm:
        """The term of some heads, renumbered from 0, of queries on ``device``."""
        return _TermOfHeads(self, tuple(heads), device)


class _TermOfHeads(TokenTerm):
    """A term for some of its heads, which can still be rebuilt for other tokens."""

    def __init__(self, term: TokenTerm, heads: tuple[int, ...], device: torch.device) -> None:
        self.term, self.heads = term, heads
        self.numbers = _numbers(heads, device)

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.term(score, b, self.numbers[h], q_idx, kv_idx)

    def of(self, q: Tensor, k: Tensor, heads: Sequence[int]) -> TokenTerm:
        return self.term.of(q, k, [self.heads[head] for head in heads])


def device_scalar(number: float, device: torch.device) -> float | Tensor:
    """``number`` as a constant of a score term. On a GPU it is a tensor, since compiled kernels take no Python float from a closure."""
    if device.type == "cpu":
        return number
    return BYTE_CACHE.get(("constant", number, device), lambda: torch.full((), number, dtype=torch.float32, device=device))


def _numbers(heads: tuple[int, ...], device: torch.device) -> Tensor:
    """``heads`` as an index tensor, ``(len(heads),)`` int64 on ``device``; cached."""
    return BYTE_CACHE.get(("numbers of heads", heads, device), lambda: torch.tensor(heads).to(device))


def take_heads(x: Tensor, heads: Sequence[int], axis: int = 1) -> Tensor:
    """The slices ``heads`` of ``x`` along ``axis``, as a view if they are consecutive. The numbers are copied to a GPU once."""
    if list(heads) == list(range(heads[0], heads[0] + len(heads))):
        return x.narrow(axis, heads[0], len(heads))
    return x.index_select(axis, _numbers(tuple(heads), x.device))


def mod_of_heads(score_mod: ScoreMod | None, heads: Sequence[int], device: torch.device) -> ScoreMod | None:
    """``score_mod`` for a group of heads, renumbered from 0, of queries on ``device``. Term objects keep their base class."""
    if isinstance(score_mod, TokenTerm):
        return score_mod.of_heads(heads, device)
    if score_mod is None or isinstance(score_mod, DistanceBias | BatchTerm | GridBias | AxisTerm):
        return None if score_mod is None else score_mod.of_heads(heads)
    numbers = _numbers(tuple(heads), device)
    return lambda score, b, h, q_idx, kv_idx: score_mod(score, b, numbers[h], q_idx, kv_idx)


def remapped(
    score_mod: ScoreMod | None,
    *,
    queries: Callable[[Tensor], Tensor] = lambda q_idx: q_idx,
    keys: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda b, h, kv_idx: kv_idx,
) -> ScoreMod | None:
    """``score_mod`` for an engine with indices other than positions. It gets ``queries(q_idx)`` and ``keys(b, h, kv_idx)``."""
    if score_mod is None:
        return None
    return lambda score, b, h, q_idx, kv_idx: score_mod(score, b, h, queries(q_idx), keys(b, h, kv_idx))


def add_term(score_mod: ScoreMod | None, term: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> ScoreMod:
    """``score_mod`` with ``term(b, h, q_idx, kv_idx)`` added to its score."""

    def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        score = score if score_mod is None else score_mod(score, b, h, q_idx, kv_idx)
        return score + term(b, h, q_idx, kv_idx).to(score.dtype)

    return mod


@dataclasses.dataclass(frozen=True)
class GatherTile:
    """R rows of query–key pairs. Sizes of 1 in the batch and head axes serve every batch item and head.

    queries: ``(B or 1, H or 1, R, Tq)`` int64, positions on the queries' axis; -1 is an empty slot. No query may appear twice in a tile.
    keys: ``(B or 1, H or 1, R, Tk)`` int64, positions on the keys' axis; -1 is an empty slot.
        The tensors must not be written to afterwards: the layout is computed once and cached for them.
    causal: no keys after the query.
    inside: ``(low, high)``: only pairs with ``low <= query - key <= high``.
    outside: ``(low, high)``: no pairs with ``low <= query - key <= high``; another tile has them.
    bias: ``(B or 1, H or 1, R or 1, Tq or 1, Tk)``: bool (False hides a pair) or float added to the scores; may require gradients.
    fixed: positions depend on lengths alone, and later calls reuse the tensors. So values on a GPU may be read once for all calls.

    A key listed twice for a query, in one row or in two tiles, counts twice: hide it by ``outside`` or ``bias`` where the definition counts
    it once.
    """

    queries: Tensor
    keys: Tensor
    causal: bool = False
    inside: tuple[int, int] | None = None
    outside: tuple[int, int] | None = None
    bias: Tensor | None = None
    fixed: bool = False

    def to(self, device: torch.device) -> GatherTile:
        """The tile on a device."""
        bias = None if self.bias is None else self.bias.to(device)
        return dataclasses.replace(self, queries=self.queries.to(device), keys=self.keys.to(device), bias=bias)

    def sees(self, distance: Tensor) -> Tensor:
        """Whether ``causal``, ``inside`` and ``outside`` leave pairs at these distances (query - key) visible."""
        seen = distance >= 0 if self.causal else distance == distance
        if self.inside is not None:
            seen = seen & (distance >= self.inside[0]) & (distance <= self.inside[1])
        if self.outside is not None:
            seen = seen & ((distance < self.outside[0]) | (distance > self.outside[1]))
        return seen


def mark_static(tiles: Iterable[GatherTile]) -> tuple[GatherTile, ...]:
    """``tiles`` marked as ``fixed``: later calls of the same lengths reuse them."""
    return tuple(dataclasses.replace(tile, fixed=True) for tile in tiles)


def rows_of(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """Positions 0 … length-1 in rows of ``size``, ``(1, 1, R, size)``, the last row padded with -1."""
    count = -(-length // size)
    places = torch.arange(count * size, device=device)
    return torch.where(places < length, places, -1).view(1, 1, count, size)


def inverse_permutation(order: Tensor) -> Tensor:
    """The inverse of permutations ``order (…, N)``: the place of every number."""
    places = torch.arange(order.shape[-1], device=order.device)
    return torch.empty_like(order).scatter_(-1, order, places.expand(order.shape))


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionCall:
    """Everything about a call besides queries ``(B, H, Nq, D)``, keys and values ``(B, H_kv, Nk, D)``.

    causal: position i ignores the keys after i.
    batch: padding and documents; a mechanism sees right padding and holes only, as :attr:`key_mask`.
    global_mask: ``(B, Nk)`` bool, True = global token, for mechanisms that take global tokens.
    scale: factor on q·k; ``None`` is ``D ** -0.5``.
    dropout: dropout probability on the weights.
    score_mod: ``score_mod(score, b, h, q_idx, kv_idx)``, as in flex_attention.
    seed: seed of randomised mechanisms.
    hidden_states: ``(B, n, hidden_size)``, the layer's input at the last n keys, for mechanisms that take it.
    detached_kv: keys and values ``(B, H_kv, n, D)`` of the last n keys as constants, for mechanisms that stop gradients there.
    positions: ``(B or 1, n)``, position values for the feature maps of n tokens; set within linear mechanisms that count positions.
    grid: the tokens' grid: one for all rows, or one for each sequence of :attr:`batch`.
    cleared: whether :func:`without_padding` has already run on the inputs.
    """

    causal: bool = False
    batch: Batch | None = None
    global_mask: Tensor | None = None
    scale: float | None = None
    dropout: float = 0.0
    score_mod: ScoreMod | None = None
    seed: int = 0
    hidden_states: Tensor | None = None
    detached_kv: tuple[Tensor, Tensor] | None = None
    positions: Tensor | None = None
    grid: Grid | tuple[Grid, ...] | None = None
    cleared: bool = False

    @classmethod
    def of(
        cls, *, padding_mask: Tensor | None = None, documents: Tensor | None = None, scaling: float | None = None, dropout_p: float = 0.0,
        **arguments: Any,
    ) -> AttentionCall:  # fmt: skip
        """The call for keyword arguments of :func:`hf_longattn.attend`, without checks."""
        return cls(batch=Batch.of(padding_mask, documents), scale=scaling, dropout=dropout_p, **arguments)

    @property
    def key_mask(self) -> Tensor | None:
        """``(B, Nk)`` bool, True = real token; ``None`` when all are."""
        return None if self.batch is None else self.batch.mask

    @property
    def documents(self) -> DocumentLabels | None:
        """The packed documents by token; ``None`` where each row is one sequence."""
        return None if self.batch is None or self.batch.documents is None else self.batch.labels

    def real(self, k: Tensor) -> Tensor:
        """:attr:`key_mask` of the keys ``k (B, H, Nk, D)``, all True where none is padding."""
        return torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device) if self.key_mask is None else self.key_mask

    def replace(self, **changes: Any) -> AttentionCall:
        """A copy of the call with these changes."""
        if torch.compiler.is_compiling():
            return dataclasses.replace(self, **changes)
        new = object.__new__(AttentionCall)  # several times faster, which counts while decoding
        new.__dict__.update(self.__dict__, **changes)
        return new

    def one_grid(self) -> Grid | None:
        """The grid of all rows. Grids of several sequences must be equal.

        Raises:
            GridError: the grids differ.
        """
        if not isinstance(self.grid, tuple):
            return self.grid
        if len(set(self.grid)) != 1:
            raise GridError(
                f"One call has {len(self.grid)} sequences on different grids ({self.grid[0]}; {self.grid[-1]}), but its rows are run "
                "together; pass padding_mask or documents, which say where each sequence lies, outside of torch.compile."
            )
        return self.grid[0]

    def with_bias_on_grid(self) -> AttentionCall:
        """This call, with its :class:`GridBias`, if any, bound to its grid."""
        if not isinstance(self.score_mod, GridBias) or not isinstance(self.grid, Grid):
            return self
        return self.replace(score_mod=self.score_mod.on(self.grid))

    def with_mask(self, key_mask: Tensor | None) -> AttentionCall:
        """The call for other keys, with their ``key_mask (B, Nk)`` bool."""
        return self.replace(batch=Batch.of(key_mask))

    def for_full_attention(self) -> AttentionCall:
        """The call without the fields that full attention ignores."""
        return self.replace(global_mask=None, hidden_states=None, detached_kv=None)

    def scale_for(self, head_dim: int) -> float:
        """The factor on q·k as a number."""
        return head_dim**-0.5 if self.scale is None else self.scale


def without_padding(
    q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, *, cross: bool = False
) -> tuple[Tensor, Tensor, Tensor, AttentionCall]:
    """Inputs with zeros in place of padding. NaN and infinities there would reach real rows, since 0 · NaN is NaN.

    Finite inputs on the CPU, where values can be read, stay as they are. So do the inputs of an exported graph.

    Args:
        cross: whether queries and hidden states belong to another sequence. If so, they stay as they are.
    """
    mask = call.key_mask
    if mask is None or call.cleared or torch.compiler.is_exporting():
        return q, k, v, call
    hidden, constants = None if cross else call.hidden_states, call.detached_kv or ()
    inputs = [x for x in (None if cross else q, k, v, hidden, *constants) if x is not None]
    if mask.device.type == "cpu" and not in_graph() and all_finite(inputs):
        return q, k, v, call.replace(cleared=True)
    padding, length = ~mask, mask.shape[1]

    def clear(x: Tensor) -> Tensor:
        by_token, rows = x.transpose(1, 2), padding[:, length - x.shape[2] :]
        if by_token.is_contiguous():  # keep the inputs' memory layout, since kernels round by it
            return by_token.masked_fill(rows[:, :, None, None], 0.0).transpose(1, 2)
        return x.masked_fill(rows[:, None, :, None], 0.0)

    return q if cross else clear(q), clear(k), clear(v), call.replace(
        cleared=True,
        hidden_states=call.hidden_states if hidden is None else clear(hidden[:, None])[:, 0],
        detached_kv=tuple(map(clear, constants)) or None,
    )  # fmt: skip


AttentionFunction = Callable[[Tensor, Tensor, Tensor, AttentionCall], Tensor]
"""Attention of sequences that start at index 0: ``run(q, k, v, call) -> (B, H, Nq, D)``."""


def attend_per_sequence(
    run: AttentionFunction, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, how: str, stacking: Stacking | None = None, *,
    clears_padding: bool = False,
) -> Tensor:  # fmt: skip
    """The output ``(B, H, Nq, D)`` of ``run`` for a batch with padding anywhere and with packed documents.

    Args:
        how: ``"packed"``, ``"stacked"``, ``"split"``, ``"masked"`` or ``"rolled"``, as the dispatcher chose for the rows.
        stacking: which documents may share a call; by default all.
        clears_padding: whether ``run`` itself keeps values of padding out of real rows.
    Returns:
        Rows of padding are finite and mean nothing.
    Raises:
        MaskError: documents in a graph.
    """
    batch = call.batch
    assert batch is not None
    if batch.documents is not None and in_graph():
        raise MaskError(
            "Documents packed into one row are kept apart by their numbers, which neither a traced graph nor torch.vmap knows; call the "
            "model without torch.compile and torch.vmap, or give each document its own row with padding."
        )
    if how == "split":
        sequences = _split_sequences(q, k, v, call, batch)
        outs = [run(*sequence) if sequence[0].shape[2] else sequence[0] for sequence in sequences]
        return batch.join(outs, len(q), q.shape[2], k.shape[2]) if outs else nothing_seen(q, k, v)
    if not clears_padding:
        q, k, v, call = without_padding(q, k, v, call)
    if how == "stacked":
        return _stacked_documents(run, q, k, v, call, batch, groups_of_documents(call, stacking or Stacking()))
    return run(q, k, v, call) if how in ("packed", "masked") else rolled(run, q, k, v, call, batch)


def weights_per_sequence(run: Callable[[Tensor, Tensor, AttentionCall], Tensor], q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
    """:func:`attend_per_sequence` for a function that returns weights ``(B, H, Nq, Nk)``. Columns of padding are zeros, and so are weights
    between documents. Rows of padding mean nothing."""
    batch = call.batch
    if batch is None:
        return run(q, k, call)
    if in_graph():
        assert batch.mask is not None
        start = first_real(batch.mask)
        return rolled(lambda q, k, v, call: roll_left(run(q, k, call), -start, 3), *without_padding(q, k, k, call), batch)
    full = q.new_zeros(len(q), q.shape[1], q.shape[2], k.shape[2])
    missing = k.shape[2] - q.shape[2]
    for span, (queries, keys, _, sequence_call) in zip(batch.sequences, _split_sequences(q, k, k, call, batch), strict=True):
        if queries.shape[2]:
            rows = slice(max(0, span.start - missing), span.stop - missing)
            full[span.row : span.row + 1, :, rows, span.start : span.stop] = run(queries, keys, sequence_call)
    return full


State = dict[str, Tensor]
"""State of a stateful mechanism after the tokens so far: tensors with the batch first."""
Advance = Callable[[Tensor, Tensor, Tensor, State | None, AttentionCall], tuple[Tensor, State]]


def advanced(
    run: Advance, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall, skipped: Sequence[int] | None
) -> tuple[Tensor, State | None]:
    """Run ``run(q, k, v, state, call) -> (output, state)`` on the next tokens of a batch. Its rows may start at different times.

    Args:
        q, k, v: ``(B, H, n, D)`` and ``(B, H_kv, n, D)``.
        state: of all rows, zeros for a row before its first token; ``None`` while no row has a token.
        skipped: number of padding tokens before each row's first token; ``None`` if there are none.
    Returns:
        The output ``(B, H, n, D)``, zeros for skipped padding, and the state; ``None`` while no row has a token.
    """
    if skipped is None or not any(skipped):
        return run(q, k, v, state, call)
    length = q.shape[2]
    first = torch.tensor(tuple(skipped), device=q.device)[:, None]
    batch = Batch(torch.arange(length, device=q.device) >= first)
    outs, states = [], {}
    for span, (queries, keys, values, sequence_call) in zip(batch.sequences, _split_sequences(q, k, v, call, batch), strict=True):
        row = slice(span.row, span.row + 1)
        if call.key_mask is not None:
            sequence_call = sequence_call.replace(batch=Batch(call.key_mask[row, span.start :]))
        before = None if state is None or span.start else {name: x[row] for name, x in state.items()}
        out, states[span.row] = run(queries, keys, values, before, sequence_call)
        outs.append(out)
    if not states:
        return torch.zeros_like(q), state
    like = next(iter(states.values()))
    empty = {name: torch.zeros_like(x) for name, x in like.items()}
    rows = [states.get(row, empty) for row in range(len(q))]
    return batch.join(outs, len(q), length, length), {name: torch.cat([row[name] for row in rows]) for name in like}


def _split_sequences(
    q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, batch: Batch
) -> Iterator[tuple[Tensor, Tensor, Tensor, AttentionCall]]:
    """Queries, keys, values and call of every sequence, as if it were alone."""
    length = k.shape[2]
    split = functools.partial(batch.split, length=length)
    nothing: list[Any] = [None] * len(batch.sequences)
    detached_kv = nothing if call.detached_kv is None else list(zip(*(split(x, 2) for x in call.detached_kv), strict=True))
    hidden = nothing if call.hidden_states is None else split(call.hidden_states, 1)
    grids = _grids(call, batch)
    parts = zip(batch.sequences, split(q, 2), split(k, 2), split(v, 2), hidden, detached_kv, grids, strict=True)
    for span, queries, keys, values, states, constants, grid in parts:
        tokens = (slice(span.row, span.row + 1), slice(span.start, span.stop))
        sequence_call = call.replace(
            batch=Batch(batch.mask[tokens]) if span.holes and batch.mask is not None else None,
            global_mask=None if call.global_mask is None else call.global_mask[tokens],
            score_mod=_score_mod_of(call.score_mod, span, grid),
            hidden_states=states,
            detached_kv=constants,
            grid=grid,
        )
        yield without_padding(queries, keys, values, sequence_call)


def _grids(call: AttentionCall, batch: Batch) -> Sequence[Grid | None]:
    """The grid of every sequence.

    Raises:
        GridError: there are not as many grids as sequences.
    """
    grids = call.grid if isinstance(call.grid, tuple) else [call.grid] * len(batch.sequences)
    if len(grids) != len(batch.sequences):
        raise GridError(f"There are {len(grids)} grids for {len(batch.sequences)} sequences; pass one grid for all, or one for each.")
    return grids


def groups_of_documents(call: AttentionCall, stacking: Stacking) -> Groups:
    """The groups of documents that share a call. Documents on grids share it if their grid and length are equal."""
    batch = call.batch
    assert batch is not None
    kind, lengths = stacking.kind, [span.length for span in batch.sequences]
    kinds: tuple[Hashable, ...] | None = None if kind is None else tuple(map(kind, lengths))
    if call.grid is not None:
        kinds = tuple(zip(_grids(call, batch), lengths, strict=True))
    return document_groups(batch, kinds, stacking.most_calls)


def _stacked_documents(
    run: AttentionFunction, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, batch: Batch, groups: Groups
) -> Tensor:
    """Run the documents as rows of batches, one batch per group."""
    shape, grids = (len(k), k.shape[2]), _grids(call, batch)
    rows = batch.cached(("rows of documents", groups), lambda: DocumentRows.of(batch, shape, groups, k.device))
    nothing: list[Any] = [None] * len(rows.calls)
    hidden = nothing if call.hidden_states is None else rows.rows(call.hidden_states, 1)
    detached_kv = nothing if call.detached_kv is None else list(zip(*(rows.rows(x, 2) for x in call.detached_kv), strict=True))
    global_mask = nothing if call.global_mask is None else rows.chosen(call.global_mask)
    parts = zip(rows.rows(q, 2), rows.rows(k, 2), rows.rows(v, 2), hidden, detached_kv, global_mask, strict=True)
    outs = []
    for number, (queries, keys, values, states, constants, tokens) in enumerate(parts):
        documents = rows.calls[number]
        grid = grids[documents.sequences[0]]
        documents_call = call.replace(
            batch=documents.batch, score_mod=_score_mod_of_rows(call.score_mod, rows, number, grid), hidden_states=states,
            detached_kv=constants, global_mask=tokens, grid=grid,
        )  # fmt: skip
        outs.append(run(queries, keys, values, documents_call))
    return rows.packed(outs)


def _score_mod_of(score_mod: ScoreMod | None, span: SequenceSpan, grid: Grid | None) -> ScoreMod | None:
    """``score_mod`` for indices that count within one sequence."""
    if isinstance(score_mod, GridBias):
        return score_mod.on(grid)
    if isinstance(score_mod, BatchTerm):
        return score_mod.of_sequence(*span[:3])
    if score_mod is None or isinstance(score_mod, DistanceBias) or span[:2] == (0, 0):
        return score_mod
    return lambda score, b, h, q_idx, kv_idx: score_mod(score, b + span.row, h, q_idx + span.start, kv_idx + span.start)


def _score_mod_of_rows(score_mod: ScoreMod | None, rows: DocumentRows, number: int, grid: Grid | None) -> ScoreMod | None:
    """``score_mod`` for the indices of a call with documents as rows. Padding gets the index of the document's last token."""
    if isinstance(score_mod, GridBias):
        return score_mod.on(grid)
    if isinstance(score_mod, BatchTerm):
        return score_mod.moved(lambda x, dim: rows.rows(x, dim)[number])
    if score_mod is None or isinstance(score_mod, DistanceBias):
        return score_mod
    row, first, last = rows.calls[number].row, rows.calls[number].first, rows.calls[number].last

    def of_rows(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score_mod(score, row[b], h, torch.minimum(q_idx + first[b], last[b]), torch.minimum(kv_idx + first[b], last[b]))

    return of_rows


def rolled(run: AttentionFunction, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, batch: Batch) -> Tensor:
    """Run ``run`` on rows rolled to their first real token. If there are fewer queries than keys, zero queries are put in front."""
    assert batch.mask is not None
    start, length = first_real(batch.mask), k.shape[2]
    missing = length - q.shape[2]
    score_mod, hidden, detached_kv = call.score_mod, call.hidden_states, call.detached_kv
    if isinstance(score_mod, BatchTerm):
        score_mod = score_mod.moved(lambda x, dim: roll_left(x, start, dim))
    elif score_mod is not None and not isinstance(score_mod, DistanceBias | GridBias):
        inner = score_mod  # takes the index before rolling, also of padding that wrapped around to the end

        def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return inner(score, b, h, wrapped(q_idx + start[b], length), wrapped(kv_idx + start[b], length))

    if hidden is not None:
        hidden = roll_left(F.pad(hidden, (0, 0, length - hidden.shape[1], 0)), start, 1)
    if detached_kv is not None:
        earlier = length - detached_kv[0].shape[2]
        keys, values = (torch.cat([x[:, :, :earlier], y], 2) if earlier else y for x, y in zip((k, v), detached_kv, strict=True))
        detached_kv = roll_left(keys, start), roll_left(values, start)
    rolled_call = call.replace(
        batch=Batch(roll_left(batch.mask, start, 1)),
        global_mask=None if call.global_mask is None else roll_left(call.global_mask, start, 1),
        score_mod=score_mod,
        hidden_states=hidden,
        detached_kv=detached_kv,
    )
    q = F.pad(q, (0, 0, missing, 0)) if missing else q
    out = run(roll_left(q, start), roll_left(k, start), roll_left(v, start), rolled_call)
    return roll_left(out, -start)[:, :, missing:]
