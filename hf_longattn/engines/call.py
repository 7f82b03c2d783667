"""Arguments of the engines.

:class:`Pattern` and :class:`GatherTile` say which query-key pairs are visible. :class:`AttentionCall` has the settings
of a call. :class:`DispatchContext` has what the choice of an algorithm depends on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .batch import Batch, Derived, DocumentLabels, all_moderate, cached_on, in_graph
from .byte_cache import BYTE_CACHE
from .score_terms import NO_TERM, GridBias, ScoreMod, ScoreTerm, as_term
from .token_grid import Grid

PatternType = Literal[
    "documents of a band",
    "pairs",
    "chunks",
    "windows",
    "band",
    "tiles",
    "blocks",
    "mask",
]
"""How the visible pairs of a call are described. :data:`hf_longattn.engines.dispatch.PATHS` lists for each type the
algorithms that compute it."""
PathName = Literal[
    "split",
    "unchanged",
    "aligned",
    "dense",
    "dense-masked",
    "sparse",
    "tiles",
    "windows",
    "plain",
    "cpu-band",
    "cpu-distances",
    "cpu-gathered",
    "cpu-blocks",
    "cpu-visible-blocks",
    "flash",
    "flex",
]
"""Names of the algorithms and kernels that run a call. The first three are layouts of a batch's sequences, described
in :mod:`.sequences`; the others compute attention."""
PaddingValues = Literal["any", "finite", "cleared"]
"""What q, k and v hold at padding: ``any`` value, even NaN; ``finite`` numbers; or ``cleared``, numbers that cannot
change the output, which :func:`clear_padding` makes sure of."""
MaskMod = Callable[[Any, Any, Any, Any], Any]
"""``mask_mod(b, h, q_idx, kv_idx) -> bool tensor``, as in ``torch.nn.attention.flex_attention``."""
UNBOUNDED = 1 << 40  # width of one side of a band without a limit


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A band: query i attends to keys ``i - left`` to ``i + right``.

    causal: whether a query never sees a later key, not even a global token.
    has_globals: whether every query also attends to the global tokens.
    global_rows: whether global tokens attend to every key.
    """

    left: int
    right: int
    causal: bool
    has_globals: bool = False
    global_rows: bool = True

    @classmethod
    def window(cls, width: int, causal: bool, has_globals: bool = False, global_rows: bool = True) -> Pattern:
        """A window of ``width`` keys: centred on the query or, if causal, ending with it."""
        if causal:
            return cls(width - 1, 0, True, has_globals, global_rows)
        return cls(width // 2, width // 2, False, has_globals, global_rows)

    @classmethod
    def everything(cls, causal: bool) -> Pattern:
        """All keys or, if causal, all keys up to the query."""
        return cls(UNBOUNDED, 0 if causal else UNBOUNDED, causal)

    @property
    def width(self) -> int:
        """Number of keys in one query's band."""
        return self.left + self.right + 1

    @property
    def bounded(self) -> bool:
        """Whether the band is finite on both sides."""
        return max(self.left, self.right) < UNBOUNDED

    def covers(self, q_len: int, kv_len: int) -> bool:
        """Whether each query's band has every key, or every key up to the query if causal. The queries are the last
        ``q_len`` of ``kv_len`` positions."""
        return self.left >= kv_len - 1 and (self.causal or self.right >= q_len - 1)

    def band_mod(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        """The ``mask_mod`` of the band alone, without global tokens and padding."""
        return (q_idx - kv_idx <= self.left) & (kv_idx - q_idx <= self.right)

    def visible_mod(self, global_mask: Tensor | None) -> MaskMod:
        """The ``mask_mod`` of the band and the global tokens, without padding. Causality applies to both.

        global_mask: ``(B, Nk)`` bool, or ``(Nk,)`` if the tokens are the same in every row.
        """
        if global_mask is None:
            return self.band_mod
        has_batch_axis = global_mask.dim() == 2

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            visible = (q_idx - kv_idx <= self.left) & (kv_idx - q_idx <= self.right)
            visible = visible | (global_mask[b, kv_idx] if has_batch_axis else global_mask[kv_idx])
            if self.global_rows:
                visible = visible | (global_mask[b, q_idx] if has_batch_axis else global_mask[q_idx])
            if self.causal:
                visible = visible & (kv_idx <= q_idx)
            return visible

        return mod


@dataclasses.dataclass(frozen=True)
class GatherTile:
    """A tile: R rows, each with a list of queries and a list of keys. Each query attends to each key of its row,
    except to pairs that the other fields hide. Batch and head axes of size 1 broadcast.

    queries: ``(B or 1, H or 1, R, Tq)`` int64, positions on the queries' axis; -1 is an empty slot. No query may
        appear twice in a tile.
    keys: ``(B or 1, H or 1, R, Tk)`` int64, positions on the keys' axis; -1 is an empty slot. Do not modify queries or
        keys in place: the layout computed from them is cached.
    causal: hides keys after the query.
    inside: ``(low, high)``: shows only pairs with ``low <= query - key <= high``.
    outside: ``(low, high)``: hides pairs with ``low <= query - key <= high``, for instance because another tile has
        them.
    bias: ``(B or 1, H or 1, R or 1, Tq or 1, Tk)``: bool (False hides a pair) or float added to the scores; may
        require gradients.

    A key that is listed twice for a query, in one row or in two tiles, counts twice. Hide duplicates by ``outside`` or
    ``bias``.
    """

    queries: Tensor
    keys: Tensor
    causal: bool = False
    inside: tuple[int, int] | None = None
    outside: tuple[int, int] | None = None
    bias: Tensor | None = None

    def sees(self, distance: Tensor) -> Tensor:
        """Which distances (query - key) are visible by ``causal``, ``inside`` and ``outside``, as bool."""
        if self.causal:
            visible = distance >= 0
        else:
            visible = distance == distance  # True for every pair
        if self.inside is not None:
            visible = visible & (distance >= self.inside[0]) & (distance <= self.inside[1])
        if self.outside is not None:
            visible = visible & ((distance < self.outside[0]) | (distance > self.outside[1]))
        return visible


def precise_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which scores, softmax and sums of ``x`` are computed: fp32, or fp64 if ``x`` is."""
    return torch.promote_types(x.dtype, torch.float32)


def rows_of(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """Positions 0 … length-1 in rows of ``size``, ``(1, 1, R, size)``, the last row padded with -1."""
    count = -(-length // size)
    index = torch.arange(count * size, device=device)
    return torch.where(index < length, index, -1).view(1, 1, count, size)


def selection_mask(chosen: Tensor, own_block: Tensor, count: int) -> Tensor:
    """Which blocks each query sees, ``(B, H, N, count)`` bool: its own and the chosen ones.

    chosen: ``(B, H, N, K)`` int64; -1 is an empty slot. own_block: ``(N, 1)``.
    """
    # An empty slot lists the query's own block once more.
    own_block = own_block.expand(*chosen.shape[:3], 1)
    listed = torch.cat([torch.where(chosen < 0, own_block, chosen), own_block], -1)
    return torch.zeros(*chosen.shape[:3], count, dtype=torch.bool, device=chosen.device).scatter_(-1, listed, True)


def inverse_permutation(order: Tensor) -> Tensor:
    """The inverse of the permutations ``order (…, N)``."""
    index = torch.arange(order.shape[-1], device=order.device)
    return torch.empty_like(order).scatter_(-1, order, index.expand(order.shape))


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionCall:
    """The arguments of attention besides queries ``(B, H, Nq, D)``, keys and values ``(B, H_kv, Nk, D)``.

    causal: position i ignores the keys after i.
    batch: padding and documents. Most mechanisms run after :mod:`.sequences` has moved each sequence to index 0. They
        handle only right padding and holes, by :attr:`key_mask`. Other mechanisms take sequences where they are.
    global_mask: ``(B, Nk)`` bool, True = global token, for mechanisms that take global tokens.
    global_positions: positions of the global tokens, ascending and unique, counted from each sequence's first real
        token. With them, no value of ``global_mask`` has to be read. ``None`` if only ``global_mask`` defines the
        global tokens.
    scale: factor on q·k; ``None`` is ``D ** -0.5``.
    dropout: dropout probability on the weights.
    score_mod: ``score_mod(score, b, h, q_idx, kv_idx)``, as in flex_attention.
    seed: seed of randomised mechanisms.
    hidden_states: ``(B, n, hidden_size)``, the layer's input at the last n keys, for mechanisms that take it.
    grid: the grid of patches, or of other cells, that the tokens of every sequence form.
    sink_scores: ``(H,)``, score of an additional softmax column without a value, the same for all queries. It takes
        weight from the keys. Queries without a visible key still output 0. Only for mechanisms with the capability
        ``takes_sinks``.
    padding_values: values that padding in q, k and v may have. In models they are finite; :func:`hf_longattn.attend`
        takes any.
    """

    causal: bool = False
    batch: Batch | None = None
    global_mask: Tensor | None = None
    global_positions: tuple[int, ...] | None = None
    scale: float | None = None
    dropout: float = 0.0
    score_mod: ScoreMod | None = None
    seed: int = 0
    hidden_states: Tensor | None = None
    grid: Grid | None = None
    sink_scores: Tensor | None = None
    padding_values: PaddingValues = "finite"

    @classmethod
    def of(
        cls,
        *,
        padding_mask: Tensor | None = None,
        documents: Tensor | None = None,
        scaling: float | None = None,
        dropout_p: float = 0.0,
        **arguments: Any,
    ) -> AttentionCall:
        """The call for keyword arguments of :func:`hf_longattn.attend`. It does not check them."""
        return cls(batch=Batch.of(padding_mask, documents), scale=scaling, dropout=dropout_p, **arguments)

    @property
    def key_mask(self) -> Tensor | None:
        """``(B, Nk)`` bool, True = real token; ``None`` without padding."""
        return None if self.batch is None else self.batch.mask

    @property
    def documents(self) -> DocumentLabels | None:
        """The document of each token; ``None`` if each row is one sequence."""
        return None if self.batch is None or self.batch.documents is None else self.batch.labels

    def real(self, k: Tensor) -> Tensor:
        """:attr:`key_mask` for keys ``k (B, H, Nk, D)``, or all True if it is ``None``."""
        if self.key_mask is not None:
            return self.key_mask
        return torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)

    def cached(
        self,
        key: tuple[Hashable, ...],
        make: Callable[[], Derived],
        size: Callable[[Derived], int | None] | None = None,
    ) -> Derived:
        """The result of ``make()``, from a cache if ``make`` ran before with this key and the same masks.

        The result is stored with the input that it depends on: with a global mask that has no positions, otherwise
        with the batch. If the call has neither, the result depends only on lengths and positions, and is stored in
        :data:`BYTE_CACHE`, for which ``size`` is the result's size in bytes, as in :meth:`ByteCache.get`.
        """
        batch = self.batch
        if self.global_mask is not None and self.global_positions is None:
            # The entry also holds the batch, so that no later object can have its id.
            return cached_on(self.global_mask, (*key, id(batch)), lambda: (make(), batch))[0]
        key = (*key, self.global_positions)
        if batch is None:
            return BYTE_CACHE.get(key, make, size)
        return batch.cached(key, make)

    def replace(self, **changes: Any) -> AttentionCall:
        """A copy of the call with other values for some fields."""
        if torch.compiler.is_compiling():
            return dataclasses.replace(self, **changes)
        new = object.__new__(AttentionCall)  # several times faster, for decoding
        new.__dict__.update(self.__dict__, **changes)
        return new

    @property
    def term(self) -> ScoreTerm:
        """:attr:`score_mod` with the methods of a :class:`ScoreTerm`."""
        return NO_TERM if self.score_mod is None else as_term(self.score_mod)

    def with_term(self, change: Callable[[ScoreTerm], ScoreMod]) -> AttentionCall:
        """The call with ``change(term)`` as its score term; unchanged without a score term."""
        if self.score_mod is None:
            return self
        return self.replace(score_mod=change(self.term))

    def of_heads(self, heads: Sequence[int], device: torch.device) -> AttentionCall:
        """The call with the score term and sinks of ``heads`` only, renumbered from 0. ``device``: the queries'
        device."""
        call = self.with_term(lambda term: term.of_heads(heads, device))
        if self.sink_scores is None:
            return call
        return call.replace(sink_scores=self.sink_scores[list(heads)])

    def with_term_on_grid(self) -> AttentionCall:
        """The call with its :class:`GridBias`, if it has one, bound to its grid."""
        if self.grid is None or not isinstance(self.score_mod, GridBias):
            return self
        return self.replace(score_mod=self.score_mod.on(self.grid))

    def written_out(self) -> AttentionCall:
        """The call with its score term as a plain function. Call this before activation checkpointing begins."""
        return self.with_term(lambda term: term.written_out)

    def with_mask(self, key_mask: Tensor | None) -> AttentionCall:
        """The call with another ``key_mask (B, Nk)`` bool, and without documents."""
        return self.replace(batch=Batch.of(key_mask))

    def for_full_attention(self) -> AttentionCall:
        """The call without the fields that full attention ignores."""
        return self.replace(global_mask=None, hidden_states=None)

    def scale_for(self, head_dim: int) -> float:
        """The factor on q·k as a number."""
        if self.scale is None:
            return head_dim**-0.5
        return self.scale


def clear_padding(
    q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, *, cross: bool = False
) -> tuple[Tensor, Tensor, Tensor, AttentionCall]:
    """Set padding to zero in q, k, v and ``call``. NaN in padding would spread to real rows, since 0 · NaN is NaN, and
    so would scores too large for an additive mask.

    Inputs of moderate size on the CPU are returned unchanged, and so are the inputs of an exported graph.

    Args:
        cross: whether queries and hidden states belong to another sequence, without this padding.
    """
    mask = call.key_mask
    if mask is None or call.padding_values == "cleared" or torch.compiler.is_exporting():
        return q, k, v, call
    inputs = [k, v]
    if not cross:
        inputs.append(q)
        if call.hidden_states is not None:
            inputs.append(call.hidden_states)
    if mask.device.type == "cpu" and not in_graph() and all_moderate(inputs):
        return q, k, v, call.replace(padding_values="cleared")
    padding = ~mask
    length = mask.shape[1]

    def clear(x: Tensor) -> Tensor:
        """``x (B, H, n, D)`` of the last n tokens, with zeros at padding."""
        by_token = x.transpose(1, 2)
        rows = padding[:, length - x.shape[2] :]
        if by_token.is_contiguous():  # keep the memory layout: kernels round differently for another layout
            return by_token.masked_fill(rows[:, :, None, None], 0.0).transpose(1, 2)
        return x.masked_fill(rows[:, None, :, None], 0.0)

    changes: dict[str, Any] = {}
    if not cross:
        q = clear(q)
        if call.hidden_states is not None:
            changes["hidden_states"] = clear(call.hidden_states[:, None])[:, 0]
    return q, clear(k), clear(v), call.replace(padding_values="cleared", **changes)


DENSE_CELLS = 256 * 256
"""Maximum query-key pairs per head for a dense masked call in place of a sparse path. Measured on CPUs, untuned on
GPUs."""
ELSEWHERE = "it is for another device"
NOT_IN_AN_EXPORTED_GRAPH = "an exported graph may only use operations that every runtime has"
"""Reasons why a path does not run a call, which several engines give."""


@dataclasses.dataclass(frozen=True, eq=False)
class DispatchContext:
    """What the choice of a path depends on. Every engine has a function ``why_not(context)``."""

    device: str
    """Type of the device, such as ``"cuda"``."""
    q_len: Any
    kv_len: Any
    """Number of queries and of keys: an int, or a symbolic size in a graph."""
    call: AttentionCall
    covered: bool = False
    """Whether every query attends to every key."""
    maskable: bool = True
    """Whether a mask over all keys can give this attention."""
    global_tokens: bool = False
    """Whether there are global tokens. Their number is unknown in a graph."""
    pattern: Pattern = None  # type: ignore[assignment]
    """The band, required for bands. ``None`` by default since Dynamo cannot trace an object as default."""
    learned_bias: bool = False
    """Whether the tiles have a bias that needs gradients."""
    dtype: torch.dtype = torch.float32
    """The dtype of the queries."""
    features: int = 0
    """Head dimension of the queries."""
    block_size: int = 0
    """Tokens in a block of a table; 0 if each query selects its blocks."""
    blocks: Callable[[], Any] | None = None
    """A function that returns which blocks of a mask over pairs have a visible pair (cpu/visible_blocks.py). ``None``
    if the values of the mask may not be read."""
    exporting: bool = False
    failed: tuple[tuple[str, str], ...] = ()
    """``(path, reason)`` for each path whose kernel this machine lacks."""

    @classmethod
    def of(
        cls, q: Tensor, k: Tensor, call: AttentionCall, dtype: torch.dtype | None = None, **more: Any
    ) -> DispatchContext:
        """The context of ``q (B, H, Nq, D)`` and ``k (B, H_kv, Nk, D)``. ``dtype`` is needed if attention runs in
        a dtype other than that of ``q``."""
        more |= {"dtype": dtype or q.dtype, "features": q.shape[3], "exporting": torch.compiler.is_exporting()}
        return cls(q.device.type, q.shape[2], k.shape[2], call, **more)

    @property
    def few_pairs(self) -> Any:
        """Whether a dense masked call is fastest: one query, or at most :data:`DENSE_CELLS` pairs."""
        return self.q_len == 1 or self.q_len * self.kv_len <= DENSE_CELLS


AttentionFunction = Callable[[Tensor, Tensor, Tensor, AttentionCall], Tensor]
"""Attention of sequences that start at index 0: ``run(q, k, v, call) -> (B, H, Nq, D)``."""
State = dict[str, Tensor]
"""State of a recurrent mechanism after the tokens so far: tensors with the batch axis first."""
