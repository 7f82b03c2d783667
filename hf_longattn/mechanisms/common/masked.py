"""Softmax over some of the keys, defined by a mask over positions, padding and causality."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...engines import accelerator
from ...engines.batch import Batch, autocasts, first_real, in_graph
from ...engines.block_sparse import block_sparse_attention, why_not_one_call
from ...engines.byte_cache import BYTE_CACHE
from ...engines.call import AttentionCall, GatherTile, MaskMod, Pattern
from ...engines.cpu.distance_band import chunked_distances
from ...engines.dense import (
    MAX_SCORES,
    dense_attention,
    fused_attention,
    grid_of,
    index_grid,
    masked_softmax,
    products,
    repeat_heads,
)
from ...engines.dispatch import choose
from ...engines.gathered import gathered_attention
from ...engines.score_terms import DistanceTerm
from ...names import warn_missing
from ...positions.relative import Rotation, SinkPositions
from ...positions.trained_distances import Locality, untrained_distances
from .base import LayerSizes, Mechanism, pad_queries, scaled_scores, softmax_over, visible_in_full_attention
from .global_tokens import GlobalTokenIds
from .layout import band_pairs, full_pairs, global_parts
from .options import Options
from .shared_options import AttendedKeys, relative_of, with_relative

SINK_POSITIONS, CACHE, TEXT = "sink_positions", "cache", "text"
"""Name of the option for the rotary positions of sinks, and its values: positions in the cache, or in the text."""
RETAINED = "retained"
"""Name of the layout (:class:`Columns`) of a cache that drops keys once no later query can see them. Decoding steps
with it use positions and no key mask."""
NO_TOKEN = 1 << 40
"""Column of a slot without a token. It lies after every query, so that causality hides the slot."""


class Columns(NamedTuple):
    """Columns of the padded batch that hold the queries and keys of a decoding step.

    layout: a name for the order in which the cache holds its keys, and the number of keys. Layers with the same layout
        have the same columns in a forward pass. In the layout named ``"all"``, key s is in column s.
    find: a function that returns the columns of the queries ``(Nq,)``, ascending, and of the keys ``(S,)``, in any
        order. Slots without a token have a column after all queries, such as :data:`NO_TOKEN`. Layers with equal
        layout and options reuse the results. In the layout :data:`RETAINED`, ``find`` returns positions in each row's
        sequence instead of columns, ``(B, Nq)`` and ``(B, S)``.
    """

    layout: tuple[str, int]
    find: Callable[[], tuple[Tensor, Tensor]]


class MaskedMechanism(Mechanism):
    """A mechanism defined by a ``mask_mod`` over positions in the keys' sequence."""

    capabilities = Mechanism.capabilities.but(takes_sinks=True)
    global_token_ids: GlobalTokenIds | None = None
    """The tokens that are global by their ids. The model finds them in inputs without a global mask."""
    listed: bool = False
    """Whether pairs are listed as tiles. Otherwise they are a band, possibly with global tokens."""

    drawn_by_layer: ClassVar[bool] = False
    """Whether the mask differs between layers with equal options."""
    forward_is_mask: bool = True
    """Whether ``forward`` attends over the mask on its engine, and does nothing else."""
    definition_is_mask: bool = True
    """Whether an output depends on exactly the keys in its row of the mask."""
    chunks: tuple[int, int] | None = None
    """``(size, before)`` if each chunk of ``size`` tokens sees itself and the preceding ``before`` tokens; else
    ``None``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A class that overrides forward or dense_weights may do more than apply the mask. If it does no more, it must
        # set the attribute to True itself.
        for method, attribute in (("forward", "forward_is_mask"), ("dense_weights", "definition_is_mask")):
            if method in vars(cls) and attribute not in vars(cls):
                setattr(cls, attribute, False)

    @abstractmethod
    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        """The definition: ``mask_mod(b, h, q_idx, kv_idx) -> bool`` for broadcastable index tensors (flex_attention's
        signature)."""

    def resolve_globals(self, k: Tensor, call: AttentionCall) -> Tensor | None:
        """The global tokens ``(B, Nk)`` bool of a call with keys ``k (B, H_kv, Nk, D)``; ``None`` without global
        tokens."""
        return None

    def global_positions(self) -> tuple[int, ...]:
        """Positions of the global tokens in a call without ``global_mask``, ascending and unique. They count from each
        sequence's first real token."""
        return ()

    def hides_padding(self, k: Tensor, call: AttentionCall) -> bool:
        """Whether outputs of real tokens are correct with any values in padding. Padding then need not be set to
        zero."""
        return False

    def visible(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The keys that each query sees, ``(B, H, Nq, Nk)`` bool (broadcastable)."""
        mod = self.mask_mod(call.causal, self.resolve_globals(k, call))
        return mod(*grid_of(q, k)) & visible_in_full_attention(q, k, call)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return softmax_over(scaled_scores(q, k, call), self.visible(q, k, call), call.sink_scores)

    def attended_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> AttendedKeys | None:
        if self.options.is_mask() and self.capabilities.recursion is None:
            return self.keys_by_mask(k, call)
        return None

    def keys_by_mask(self, k: Tensor, call: AttentionCall) -> AttendedKeys:
        """:meth:`attended_keys` for a mechanism that only masks full attention."""
        mod = self.mask_mod(call.causal, self.resolve_globals(k, call))
        b, h, _, kv_idx = index_grid(k.shape[0], self.num_heads, 1, k.shape[2], k.device)
        return lambda rows, scores: mod(b, h, rows.view(1, 1, -1, 1), kv_idx)

    def attend_rows(
        self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, columns: Columns | None = None
    ) -> Tensor:
        """Causal attention of the tokens of a decoding step, by :meth:`mask_mod`. Layers with equal options share the
        mask.

        Args:
            q: ``(B, H, Nq, D)``.
            k, v: ``(B, H_kv, S, D)``, including the tokens of the queries.
            call: its padding and global mask ``(B, N)`` cover all columns. Its score term takes columns as indices.
            columns: columns of queries and keys. By default, the keys are in columns 0 … S - 1, and the queries in
                the last Nq of them.
        Returns:
            The output ``(B, H, Nq, D)``, arbitrary at padding.
        """
        relative = self.relative
        if columns is None or columns.layout[0] != RETAINED:  # a retained cache has only some of the text's keys
            relative = relative_of(self, k, call)
        plain = relative is None and call.score_mod is None
        # A mask that is added to the scores runs faster, but in float16 a score can exceed the added lowest number.
        additive = plain and not in_graph() and not autocasts(q) and q.dtype != torch.float16
        if columns is None:
            kv_len = k.shape[2]
            first = kv_len - q.shape[2]
            if plain and q.shape[2] == 1 and call.key_mask is None and self.covers(kv_len, causal=True):
                return fused_attention(q, k, v, dropout_p=0.0, scale=call.scale, sink_scores=call.sink_scores)
            columns = Columns(
                ("all", kv_len),
                lambda: (torch.arange(first, kv_len, device=k.device), torch.arange(kv_len, device=k.device)),
            )
        drawn = self.layer if self.drawn_by_layer else 0
        mask_key = (  # equal in layers that share the mask
            "step",
            type(self),
            self.options,
            self.training,
            self.num_heads,
            drawn,
            len(q),
            q.shape[2],
            q.device,
            columns.layout,
        )
        dtype = q.dtype if additive else torch.bool
        seen = call.cached((*mask_key, dtype), partial(self._visible_columns, k, call, columns, dtype))
        if plain:
            return fused_attention(
                q, k, v, attn_mask=seen, dropout_p=call.dropout, scale=call.scale, sink_scores=call.sink_scores
            )

        def positions() -> tuple[Tensor, ...]:
            rows, keys = columns.find()
            return rows, keys, *_from_start(rows, keys, self._starts(call))

        # Relative positions count from the start of each sequence. A score term gets columns.
        q_columns, k_columns, rows, keys = call.cached((*mask_key, "positions"), positions)
        if call.score_mod is None:
            return self.attend_with_terms(q, k, v, seen, rows, keys, call)
        scores = products(q, repeat_heads(k, q.shape[1])) * call.scale_for(q.shape[-1])
        if relative is not None:
            scores = scores + relative.term(q, k, rows, keys, True, call.scale_for(self.head_dim))
        b, h, _, _ = grid_of(q, k)
        scores = call.score_mod(scores, b, h, q_columns.view(1, 1, -1, 1), k_columns.view(1, 1, 1, -1))
        return masked_softmax(scores, seen, call.sink_scores).to(v.dtype) @ repeat_heads(v, q.shape[1])

    def _visible_columns(self, k: Tensor, call: AttentionCall, columns: Columns, dtype: torch.dtype) -> Tensor:
        """Which keys ``k (B, H_kv, S, D)`` each query sees, ``(B or 1, H or 1, Nq, S)``.

        As bool if ``dtype`` is bool. Otherwise as numbers to add to the scores: 0, or the lowest number for hidden
        keys.
        """
        rows, keys = columns.find()
        real = call.key_mask
        tokens = call.global_mask
        if real is not None and not (real.shape[1] == len(keys) and columns.layout[0] == "all"):
            real = real[:, keys.clamp(max=real.shape[1] - 1)]
        hidden = (keys[..., None, :] > rows[..., None]).unsqueeze(-3)

        # The mask compares positions in the sequence. The global mask is moved from columns to positions, too.
        start = self._starts(call)
        rows, keys = _from_start(rows, keys, start)
        if tokens is not None and start is not None:
            index = torch.arange(tokens.shape[1], device=k.device) + start
            tokens = tokens.gather(1, index.clamp(max=tokens.shape[1] - 1))
        if self.capabilities.takes_globals and columns.layout[0] != RETAINED:
            tokens = self.resolve_globals(k, call.replace(batch=None, global_mask=tokens))
        if tokens is not None:
            rows = rows.clamp(0, tokens.shape[1] - 1)
            keys = keys.clamp(0, tokens.shape[1] - 1)
        b, h, _, _ = index_grid(k.shape[0], self.num_heads, 1, 1, k.device)
        seen = self.mask_mod(True, tokens)(b, h, rows[:, None, :, None], keys[:, None, None, :]) & ~hidden
        if real is not None:
            seen = seen & real[:, None, None, :]
        if dtype == torch.bool:
            return seen
        return torch.zeros(seen.shape, dtype=dtype, device=k.device).masked_fill_(~seen, torch.finfo(dtype).min)

    def _starts(self, call: AttentionCall) -> Tensor | None:
        """Column of each sequence's first real token, ``(B, 1)``, if positions count from there; ``None`` if columns
        serve as positions."""
        counts_from_start = self.capabilities.position_dependent and self.capabilities.ignores_padding
        if call.key_mask is None or not counts_from_start:
            return None
        return first_real(call.key_mask)[:, None]

    def retained(self, positions: Tensor, upcoming: Tensor) -> Tensor | None:
        """Whether later queries can see each key at ``positions (B, S)``, bool. The decode cache retains these keys.

        Later queries are causal, at positions from ``upcoming (B, 1)`` on. Positions count from each sequence's first
        real token. If this method returns ``None``, the cache retains the last
        :func:`~.capabilities.keys_per_query` keys, or all.
        """
        return None

    def attend_with_terms(
        self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, rows: Tensor, keys: Tensor, call: AttentionCall
    ) -> Tensor:
        """Attention with relative positions over the keys that are True in ``seen (B or 1, H or 1, Nq, S)``.

        rows, keys: positions of queries and keys, ``(B or 1, Nq)`` and ``(B or 1, S)``.
        """
        assert self.relative is not None
        scale = call.scale_for(self.head_dim)
        # Terms differ between heads and fill a mask with a number for every score: limit the queries at a time.
        size = max(1, MAX_SCORES // (len(q) * q.shape[1] * k.shape[2]))
        if q.shape[2] > size and not in_graph():
            call = call.replace(batch=Batch(), global_mask=None)  # masks of pieces are not shared between layers
            outs = [
                self.attend_with_terms(queries, k, v, visible, positions, keys, call)
                for queries, visible, positions in zip(
                    q.split(size, 2), seen.split(size, 2), rows.split(size, 1), strict=True
                )
            ]
            return torch.cat(outs, 2)
        dtype = q.dtype
        if isinstance(self.relative, SinkPositions):
            mask = self.relative.mask(q, k, seen, rows, keys, scale, call)
        else:
            term = self.relative.term(q, k, rows, keys, call.causal, scale)
            # half precision would round the terms of distant keys to whole numbers
            wide = torch.promote_types(dtype, term.dtype)
            mask = torch.where(seen, term.to(wide), torch.finfo(wide).min)
            q, k, v = q.to(wide), k.to(wide), v.to(wide)
        out = fused_attention(
            q, k, v, attn_mask=mask, dropout_p=call.dropout, scale=call.scale, sink_scores=call.sink_scores
        )
        return out.to(dtype)


def steps_by_mask(mechanism: Mechanism) -> bool:
    """Whether ``attend_rows`` can replace ``forward`` in decoding steps: the mechanism only masks, and has no
    hooks."""
    if not isinstance(mechanism, MaskedMechanism):
        return False
    if not mechanism.definition_is_mask or not mechanism.options.is_mask():
        return False
    # The hook that adds relative positions does not count: attend_rows adds them, too.
    relative_by_hook = not isinstance(mechanism.relative, SinkPositions | None)
    return relative_by_hook or not has_hooks(mechanism)


class SparseMechanism(MaskedMechanism):
    """A mechanism whose mask is a band, possibly with global rows and columns."""

    capabilities = MaskedMechanism.capabilities.but(position_dependent=False)
    forward_is_mask = True
    finds_starts: bool = False
    """Whether :meth:`resolve_globals` finds the start of each sequence itself. Accelerators then need not move rows
    with left padding."""

    def __init__(self, sizes: LayerSizes, options: Options) -> None:
        super().__init__(sizes, options)
        counts_tokens = self.relative is not None and self.relative.counts_tokens
        has_globals = self.pattern(self.causal is not False).has_globals
        self.capabilities = self.capabilities.but(position_dependent=has_globals or counts_tokens)

    @abstractmethod
    def pattern(self, causal: bool) -> Pattern:
        """The band and the global rows and columns that the engine visits. It may depend on ``self.options`` alone."""

    def turn_sinks(self, rotation: Callable[[], Rotation]) -> None:
        """Give the sinks (:func:`leading_sinks`) their positions in the cache, as in StreamingLLM.

        rotation: returns the layer's rotation.
        """
        num_heads, head_dim, hidden_size, _ = self.sizes
        window = self.pattern(True).left + 1
        self.relative = SinkPositions(num_heads, head_dim, hidden_size, leading_sinks(self), window, rotation)
        self.finds_starts = False  # the positions of queries also count from the start of a sequence

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, Nq, D)`` of the engine for bands and global tokens."""
        if isinstance(self.relative, SinkPositions):  # added here: a hook would cost short texts their fused call
            call = with_relative(self, q, k, call)
        tokens = self.resolve_globals(k, call)
        if tokens is not call.global_mask:
            call = call.replace(
                global_mask=tokens, global_positions=self.global_positions() if call.global_mask is None else None
            )
        return block_sparse_attention(q, k, v, self.pattern(call.causal), call)

    def labels_documents(self, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
        by_labels = self.finds_starts and self.hides_padding(k, call) and accelerator.accelerated(k)
        return by_labels and why_not_one_call(k, k, self.pattern(call.causal), call) is None

    def hides_padding(self, k: Tensor, call: AttentionCall) -> bool:
        return self.forward_is_mask and self.relative is None

    def locality(self, causal: bool) -> Locality | None:
        pattern = self.pattern(causal)
        beside = "globals" if pattern.has_globals else ""
        return Locality(pattern.left, pattern.right, beside=beside) if pattern.bounded else None

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.pattern(causal).covers(length, length)

    def pairs(self, length: int, causal: bool = False) -> int:
        pattern = self.pattern(causal)
        return min(full_pairs(length, causal), band_pairs(length, pattern.left, pattern.right))


def leading_sinks(mechanism: Mechanism) -> int:
    """Number of sinks that may get rotary positions in the cache instead of positions in the text.

    The causal form of such a mechanism is a window and the first tokens of the text. The number is 0 for other
    mechanisms, and for options that keep positions in the text: ``sink_positions="text"``, ``relative``, a dilation,
    ``full_decoding``.
    """
    if not isinstance(mechanism, SparseMechanism) or mechanism.is_cross_attention or mechanism.causal is False:
        return 0
    options = mechanism.options
    if options.relative is not None or not options.is_mask() or getattr(options, SINK_POSITIONS, CACHE) != CACHE:
        return 0
    local = mechanism.locality(True)
    if local is None or local.beside != "globals" or mechanism.global_token_ids is not None:
        return 0
    positions = mechanism.global_positions()
    if positions != tuple(range(len(positions))):
        return 0
    return len(positions)


def has_sinks_in_text(mechanisms: Iterable[Mechanism]) -> bool:
    """Whether a layer of a rotary decoder has sinks that keep their positions in the text, because this package cannot
    compute the layer's rotation."""
    return any(leading_sinks(mechanism) and mechanism.relative is None for mechanism in mechanisms)


def furthest_position(mechanism: Mechanism, causal: bool) -> int | None:
    """Largest distance from a query to a key in a rotary model, in positions; ``None`` if unbounded.

    Sinks with the positions of a cache (:func:`leading_sinks`) are directly before the window.
    """
    local = mechanism.locality(causal)
    sinks = leading_sinks(mechanism) if causal else 0
    if local is None or (local.beside and not sinks):
        return None
    return max(local.back + sinks, local.ahead)


def needs_training_by(mechanism: Mechanism, strategy: str, trained: int, length: int, causal: bool) -> str:
    """Why ``mechanism`` needs training if positions are extended by ``strategy``; empty if it needs none. See
    :func:`~hf_longattn.positions.trained_distances.untrained_distances`."""
    return untrained_distances(
        strategy, trained, length, mechanism.locality(causal), furthest_position(mechanism, causal)
    )


class GatheredMechanism(MaskedMechanism):
    """A mechanism that lists its pairs as :class:`~hf_longattn.engines.call.GatherTile`. Pairs depend only on the
    length.

    The engine takes whole sequences. If there are fewer queries than keys, queries of zeros are put in front.
    """

    listed = True
    forward_is_mask = True

    @abstractmethod
    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """The tiles that the engine visits for a sequence of ``length`` tokens.

        Together they list exactly the pairs of ``mask_mod`` or, if causal, those with ``key <= query``. They omit a
        call's global tokens. The result is cached. Besides the arguments, it may depend only on ``self.options`` and
        the heads.
        """

    def plan(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """:meth:`parts`, cached."""
        key = (type(self), self.options, self.num_heads, length, causal, device)
        return BYTE_CACHE.get(key, lambda: tuple(self.parts(length, causal, device)))

    def labels_documents(self, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
        """Whether every document gets full attention, and one operator computes all documents.

        Otherwise each document becomes a batch row. Listing tiles for each document would need more calls and
        synchronisations.
        """
        if (
            not accelerator.accelerated(k)
            or self.relative is not None
            or not self.forward_is_mask
            or call.batch is None
            or in_graph()
        ):
            return False
        longest = max((span.length for span in call.batch.sequences), default=1)
        if not self.covers(longest, call.causal) or self.resolve_globals(k, call) is not None:
            return False
        return why_not_one_call(k, k, Pattern.everything(call.causal), call) is None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, Nq, D)``: dense for short texts, else over the tiles of :meth:`parts`.

        Packed documents come here only if all of them get full attention.
        """
        if call.batch is not None and call.batch.documents is not None:
            return block_sparse_attention(q, k, v, Pattern.everything(call.causal), call)
        q_len, kv_len = q.shape[2], k.shape[2]
        tokens = self.resolve_globals(k, call)
        tokens_of_call = tokens is not None and call.global_mask is not None
        conditions = {"covered": self.covers(kv_len, call.causal), "global_tokens": tokens_of_call}

        # Chunks with a term that depends on the distance alone can run on an engine of their own.
        term = None
        if self.chunks is not None and call.score_mod is not None:
            term = DistanceTerm.of(call.term, q, k)
        if term is None:
            path = choose("pairs", q, k, call, **conditions)
        else:
            path = choose("chunks", q, k, call.replace(score_mod=term), **conditions)
        if path == "cpu-distances":
            assert self.chunks is not None
            assert term is not None
            return chunked_distances(q, k, v, term, *self.chunks, call)
        if path == "dense":
            return dense_attention(q, k, v, call)
        if path == "dense-masked":
            return dense_attention(q, k, v, call, mask_mod=self.mask_mod(call.causal, tokens))

        # The tiles list the pairs of the mask; the call's global tokens are added as tiles of rows and columns.
        parts = self.plan(kv_len, call.causal, q.device)
        if tokens is not None:
            count = len(self.global_positions())
            if tokens_of_call and not in_graph():
                count = int(tokens.sum(-1).max())
            parts += global_parts(tokens, count, self.mask_mod(call.causal, None), self.num_heads, call.causal)
        return gathered_attention(pad_queries(q, kv_len), k, v, parts, call)[:, :, kv_len - q_len :]


def _from_start(rows: Tensor, keys: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Columns of queries and keys as positions from each sequence's ``start (B, 1)``, ``(B or 1, n)``."""
    if start is None:
        return rows.view(-1, rows.shape[-1]), keys.view(-1, keys.shape[-1])
    return rows - start, keys - start


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook may change the inputs or outputs of ``module``."""
    try:
        return bool(module._forward_hooks or module._forward_pre_hooks)
    except AttributeError:  # the attributes are private and may disappear from a later torch
        warn_missing("has_hooks")
        return True
