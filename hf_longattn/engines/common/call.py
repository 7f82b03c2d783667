"""Arguments of an engine: visible pairs (band, tiles), score terms, other settings, and what the choice of a path depends on.

:mod:`.sequences` moves the sequences of a batch to index 0 before a mechanism runs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import GridError
from .batch import Batch, DocumentLabels, all_finite, in_graph
from .derivatives import no_fused_kernels
from .document_rows import Stacking
from .grid import Grid
from .score_terms import NO_TERM, ScoreMod, ScoreTerm, as_term

MaskMod = Callable[[Any, Any, Any, Any], Any]
"""``mask_mod(b, h, q_idx, kv_idx) -> bool tensor``, as in ``torch.nn.attention.flex_attention``."""
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
                f"One call has {len(self.grid)} sequences on different grids ({self.grid[0]}; {self.grid[-1]}), but its rows run "
                "together; pass padding_mask or documents to tell the sequences apart, and run without torch.compile."
            )
        return self.grid[0]

    @property
    def term(self) -> ScoreTerm:
        """:attr:`score_mod` with the methods of a :class:`ScoreTerm`."""
        return NO_TERM if self.score_mod is None else as_term(self.score_mod)

    def with_term(self, change: Callable[[ScoreTerm], ScoreMod]) -> AttentionCall:
        """The call with its score term replaced by ``change(term)``. Without a score term, the call itself."""
        return self if self.score_mod is None else self.replace(score_mod=change(self.term))

    def of_heads(self, heads: Sequence[int], device: torch.device) -> AttentionCall:
        """The call with the score term of ``heads`` only, renumbered from 0. ``device`` is where the queries are."""
        return self.with_term(lambda term: term.of_heads(heads, device))

    def with_term_on_grid(self) -> AttentionCall:
        """The call with its score term bound to its grid."""
        grid = self.grid
        return self.with_term(lambda term: term.on(grid)) if isinstance(grid, Grid) else self

    def written_out(self) -> AttentionCall:
        """The call with its score term as a plain function. Call it outside of checkpoints, which would not redo it."""
        return self.with_term(lambda term: term.written_out)

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


DENSE_CELLS = 256 * 256
"""Query-key pairs per head up to which one dense masked call replaces every sparse path. Measured on CPUs, where sparse paths take several
calls. Untuned on GPUs, where so few pairs should cost little besides the kernel launch."""
ANY_CALL = AttentionCall()
"""A placeholder for choices that do not depend on the call."""
ELSEWHERE = "the tensors are on another device"
NOT_IN_AN_EXPORTED_GRAPH = "an exported graph holds operations of every runtime only"


@dataclasses.dataclass(frozen=True, eq=False)
class DispatchContext:
    """Everything that the choice of a path depends on. Each engine reads it in ``why_not``, beside its code."""

    device: str
    q_len: Any
    kv_len: Any
    call: AttentionCall
    covered: bool = False
    """Whether the mechanism sees every pair."""
    global_tokens: bool = False
    """Whether there are global tokens. A graph does not know how many."""
    pattern: Pattern = None  # type: ignore[assignment]
    """The band. It must be set for kinds of calls with a band. Dynamo traces no default that is an object."""
    learned_bias: bool = False
    """Whether the tiles have a bias that needs gradients."""
    dtype: torch.dtype | None = None
    features: int = 0
    """Width of a query head; for linear mechanisms, the larger of feature and value width."""
    by_position: bool = False
    """Whether the output depends on where a sequence starts."""
    single_call: bool = False
    """Whether all rows or packed documents of a batch must be in one call."""
    separate_calls: bool = False
    """Whether every sequence must be its own call."""
    stacking: Stacking | None = None
    """Which documents may be rows of one batch, padded on the right. ``None`` if none may, for instance because padding counts."""
    trims_padding: bool = False
    """Whether the engine cuts off each row's outer padding itself."""
    selection: tuple[int, int] = (1, 1)
    """Query heads per selection of blocks, and tokens per block."""
    failed: tuple[tuple[str, str], ...] = ()
    """Paths whose attempt failed, and why."""

    @classmethod
    def of(cls, q: Tensor, k: Tensor, call: AttentionCall, **more: Any) -> DispatchContext:
        """The context of ``q (B, H, Nq, D)`` and ``k (B, H_kv, Nk, D)``."""
        return cls(q.device.type, q.shape[2], k.shape[2], call, **more)

    @property
    def few_pairs(self) -> Any:
        """Whether there are so few pairs that one dense masked call is fastest."""
        return self.q_len == 1 or self.q_len * self.kv_len <= DENSE_CELLS

    @property
    def many_pairs(self) -> Any:
        """Whether there are more pairs than :data:`DENSE_CELLS`."""
        return self.q_len * self.kv_len > DENSE_CELLS

    @functools.cached_property
    def plain_only(self) -> str | None:
        """Why only plain operations may run now. Asked once per call. Not for graphs, which may have fused kernels."""
        return no_fused_kernels()


AttentionFunction = Callable[[Tensor, Tensor, Tensor, AttentionCall], Tensor]
"""Attention of sequences that start at index 0: ``run(q, k, v, call) -> (B, H, Nq, D)``."""
State = dict[str, Tensor]
"""State of a stateful mechanism after the tokens so far: tensors with the batch first."""
