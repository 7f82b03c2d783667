"""How one process computes its part of a sequence that is sharded across processes.

Mechanisms with a bounded locality fetch neighbouring keys. Recurrent ones pass on their state. All others exchange tokens for heads.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..engines.block_sparse import block_sparse_attention
from ..engines.common.call import AttentionCall, AttentionFunction, Pattern
from ..engines.common.dense import repeat_heads
from ..engines.common.global_rows import global_index, put_rows
from ..errors import MaskError, OptionError
from ..positions.distances import Locality
from .shard import GlobalTokens, Shard, even_bounds, in_turn, softmax_rows

GlobalRows = Callable[[Tensor, Tensor, Tensor, AttentionCall, Tensor, Shard], tuple[Tensor, Tensor, Tensor]]


def only_locality(mechanism: Any, causal: bool) -> Locality | None:
    """The locality, if queries see only this range and global tokens, so that a sequence can be cut into pieces. Else ``None``."""
    local = mechanism.locality(causal)
    return local if local is not None and local.beside != "others" else None


def global_rows_of(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, index: Tensor, shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
    """The queries of global tokens, and this process's keys and values.

    Returns ``(B, H, g, D)`` for the tokens ``index (B, g)``, and ``(B, H, n, D)`` twice.
    """
    return shard.tokens(q, index), repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])


def attend_sharded(
    mechanism: Any, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, shard: Shard, band: Pattern | None = None,
    global_rows: GlobalRows = global_rows_of,
) -> Tensor:  # fmt: skip
    """:meth:`Mechanism.attend_sharded` for most mechanisms.

    A mechanism with a bounded locality fetches the keys and values of neighbouring and global tokens. The outputs of global tokens are
    merged from all processes. A recurrence runs in one process after the other. A mechanism that needs whole sequences gets them for some
    of the heads (:func:`attend_by_heads`).

    Args:
        band: the pattern for the block-sparse engine. If ``None``, the mechanism's ``forward`` runs instead.
        global_rows: returns the queries of the global tokens, and the keys and values that they attend to.
    """
    local = only_locality(mechanism, call.causal)
    if local is None:
        if not (mechanism.traits.stateful and call.causal):
            return attend_by_heads(mechanism, q, k, v, call, shard)
        check_counted_tokens(mechanism, shard)
        local_call = shard.local_call(call)
        return in_turn(lambda state: mechanism.advance(q, k, v, state, local_call), q, shard)
    mask = mechanism.resolve_globals(k.new_empty(1).expand(len(k), 1, shard.length, 1), shard.call(call, 0, shard.length))
    counted = (local.period > 1 or mask is not None) and not shard.starts_at_first
    if counted or (mask is not None and call.term.reads_tokens):
        return attend_by_heads(mechanism, q, k, v, call, shard)
    if mask is None:
        return shard.attend(functools.partial(shard.run, mechanism), q, k, v, call, local)
    if mechanism.relative is not None:
        raise OptionError(
            f"Mechanism {mechanism.name!r} with relative positions and global tokens cannot be sharded across processes; "
            "leave out one of the two."
        )
    tokens = GlobalTokens(mask, *global_index(mask))
    run: AttentionFunction = mechanism
    if band is not None:
        columns_only = dataclasses.replace(band, global_rows=False)
        run = lambda q, k, v, call: block_sparse_attention(q, k, v, columns_only, call)  # noqa: E731
    out = shard.attend(run, q, k, v, call, local, tokens)
    index, real = tokens.index, tokens.real
    if not index.shape[1] or not (band is None or (band.has_globals and band.global_rows)):
        return out
    rows = softmax_rows(*global_rows(q, k, v, call, index, shard), index, call.scale_for(q.shape[-1]), call, shard)
    return put_rows(out, rows.to(out.dtype), (index - shard.start).clamp(min=0), real & shard.owns(index))


def attend_by_heads(mechanism: Any, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, shard: Shard) -> Tensor:
    """This process's outputs, computed from whole sequences for some of the heads. Tokens are exchanged for heads, and back.

    Needed if outputs depend on the whole sequence, or if tokens are counted and there is left padding or packed documents.

    Raises:
        OptionError: the mechanism cannot be divided by heads, or there are fewer heads than processes.
        MaskError: the same, if only left padding or packed documents make a division by heads necessary.
    """
    heads, processes, names, relative = q.shape[1], len(shard.bounds), mechanism.per_head_tensors, mechanism.relative
    if names is None or relative is not None or mechanism.traits.takes_hidden_states or heads < processes:
        if only_locality(mechanism, call.causal) is not None:  # with right padding only, whole sequences would not be needed
            check_counted_tokens(mechanism, shard)
        if names is not None and heads < processes:
            raise OptionError(
                f"Mechanism {mechanism.name!r} needs whole sequences, so that processes divide its heads, but {heads} heads cannot be "
                f"divided over {processes} processes; use at most {heads}, or a local mechanism, for example longformer."
            )
        with_relative = "relative positions" if relative is not None else "these options"
        raise OptionError(
            f"Mechanism {mechanism.name!r} with {with_relative} looks at the whole sequence, which cannot be sharded across processes; "
            "choose a local or a linear one, for example window, longformer or linear, or leave sequence parallelism out."
        )
    if k.shape[1] < processes:
        k, v = repeat_heads(k, heads), repeat_heads(v, heads)
    groups, each = even_bounds(k.shape[1], processes), heads // k.shape[1]
    divided = [(first * each, last * each) for first, last in groups]
    first, last = divided[shard.rank]
    q, k, v = shard.tokens_to_heads(divided, groups, q, k, v)
    call = call.with_term(lambda term: term.of(q, k, range(first, last)))
    named = {**dict(mechanism.named_parameters()), **dict(mechanism.named_buffers())}
    tensors = {f"mechanism.{name}": named[name][first:last] for name in names}
    full_call = shard.call(call, 0, shard.length)
    arguments = (shard.run, mechanism.of_heads(first, last), q, k, v, full_call)
    return shard.heads_to_tokens(divided, torch.func.functional_call(_SomeHeads(mechanism), tensors, arguments))


def check_counted_tokens(mechanism: Any, shard: Shard) -> None:
    """Raise :class:`MaskError` unless every sequence starts at its batch row's first token. For mechanisms that count tokens."""
    if not shard.starts_at_first:
        raise MaskError(
            f"Mechanism {mechanism.name!r} counts tokens from each sequence's start, which another process may hold if rows have left "
            "padding or several documents; pad on the right, with one document in each row."
        )


class _SomeHeads(nn.Module):
    """Wrapper in which ``torch.func.functional_call`` replaces a mechanism's tensors by those of some heads."""

    def __init__(self, mechanism: Any) -> None:
        super().__init__()
        self.mechanism = mechanism

    def forward(self, run: Callable[..., Tensor], part: Any, *args: Any) -> Tensor:
        return run(part, *args)
