"""How a mechanism computes one process's part of a sequence that is sharded across processes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...engines.common.call import AttentionCall
from ...engines.common.dense import repeat_heads
from ...engines.common.global_rows import put_rows
from ...engines.common.shards import GlobalTokens, Locality, Shard, even_bounds, in_turn, softmax_rows
from ...errors import MaskError, OptionError
from .scores import ScoreTerms

if TYPE_CHECKING:
    from typing_extensions import Self


class Shardable(ScoreTerms):
    """Bounded mechanisms fetch neighbouring keys, stateful ones pass their state, others exchange tokens for heads."""

    num_heads: int
    shard: Shard | None = None
    """This process's shard, if the sequence is sharded across processes (:func:`hf_longattn.sequence_parallel`)."""
    per_head_tensors: tuple[str, ...] | None = None
    """Names, below the mechanism, of the tensors whose first axis is the heads. A process can then compute some of the heads
    (:meth:`of_heads`). ``None`` if heads depend on each other, or if anything else depends on which or how many heads there are."""
    head_range: tuple[int, int] | None = None
    """The first head and the number of all heads, in a part made by :meth:`of_heads`; ``None`` for a whole mechanism."""

    def locality(self, causal: bool) -> Locality | None:
        """The distances that a token sees, without global tokens; ``None`` if unbounded. A bounded mechanism can be sharded."""
        return None

    def attend_sharded(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, shard: Shard) -> Tensor:
        """This process's rows of a sequence that is sharded across processes. All processes must call it.

        A bounded mechanism fetches the keys and values of neighbouring and global tokens; the rows of global tokens combine the sums of all
        processes. A recurrence runs in one process after the other. A mechanism that needs whole sequences gets them for some of the
        heads, see :meth:`attend_by_heads`.

        Args:
            q: ``(B, H, n, D)``, this process's own tokens; k, v: ``(B, H_kv, n, D)``.
            call: without batch and global tokens, which the shard holds.
        Raises:
            OptionError: outputs depend on the whole sequence in a way that cannot be sharded, or relative positions meet global tokens.
            MaskError: left padding or packed documents, for a mechanism that counts tokens.
        """
        local = self.locality(call.causal)
        if local is None:
            return self._in_turn(q, k, v, call, shard)
        mask = self.resolve_globals(k.new_empty(1).expand(len(k), 1, shard.length, 1), shard.call(call, 0, shard.length))
        counted = (local.period > 1 or mask is not None) and not shard.starts_at_first
        if counted or (mask is not None and call.term.reads_tokens):
            return self.attend_by_heads(q, k, v, call, shard)
        if mask is None:
            return shard.attend(functools.partial(shard.run, self), q, k, v, call, local)
        if self.relative is not None:
            raise OptionError(
                f"Mechanism {self.name!r} with relative positions and global tokens cannot be sharded across processes; "
                "leave out one of the two."
            )
        tokens = GlobalTokens.of(mask)
        out = shard.attend(self.attend_resolved, q, k, v, call, local, tokens)
        index, real = tokens.index, tokens.real
        if not self.global_rows(call.causal) or not index.shape[1]:
            return out
        rows = softmax_rows(*self.of_global_rows(q, k, v, call, index, shard), index, call.scale_for(q.shape[-1]), call, shard)
        return put_rows(out, rows.to(out.dtype), (index - shard.start).clamp(min=0), real & shard.owns(index))

    def attend_resolved(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """:meth:`forward` with the global tokens of ``call.global_mask`` and no others. The rows of global tokens may be anything."""
        return self(q, k, v, call)

    def global_rows(self, causal: bool) -> bool:
        """Whether global tokens see every key."""
        return True

    def of_global_rows(
        self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, index: Tensor, shard: Shard
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(B, H, g, D)`` of the global tokens ``index (B, g)``, and the keys and values ``(B, H, n, D)`` that they see here."""
        return shard.tokens(q, index), repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])

    def _in_turn(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, shard: Shard) -> Tensor:
        """:meth:`advance` in one process after the other."""
        if not (self.stateful and call.causal):
            return self.attend_by_heads(q, k, v, call, shard)
        self.check_shard(shard)
        local_call = shard.local_call(call)
        return in_turn(lambda state: self.advance(q, k, v, state, local_call), q, shard)

    def attend_by_heads(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, shard: Shard) -> Tensor:
        """This process's rows, computed from whole sequences of some of the heads. Tokens are exchanged for heads, and back.

        For mechanisms whose outputs depend on the whole sequence, and for documents and left padding if tokens are counted.

        Raises:
            OptionError: the mechanism cannot be divided by heads, or there are fewer heads than processes.
            MaskError: it cannot be divided, and could be sharded if every sequence started at its row's first token.
        """
        heads, processes = q.shape[1], len(shard.bounds)
        if self.per_head_tensors is None or self.relative is not None or self.takes_hidden_states or heads < processes:
            if self.locality(call.causal) is not None:  # rows padded on the right do not need whole sequences
                self.check_shard(shard)
            if self.per_head_tensors is not None and heads < processes:
                raise OptionError(
                    f"Mechanism {self.name!r} needs whole sequences, so that processes divide its heads, but {heads} heads cannot be "
                    f"divided over {processes} processes; use at most {heads}, or a local mechanism, for example longformer."
                )
            with_relative = "relative positions" if self.relative is not None else "these options"
            raise OptionError(
                f"Mechanism {self.name!r} with {with_relative} looks at the whole sequence, which cannot be sharded across processes; "
                "choose a local or a linear one, for example window, longformer or linear, or leave sequence parallelism out."
            )
        if k.shape[1] < processes:
            k, v = repeat_heads(k, heads), repeat_heads(v, heads)
        groups, each = even_bounds(k.shape[1], processes), heads // k.shape[1]
        divided = [(first * each, last * each) for first, last in groups]
        first, last = divided[shard.rank]
        q, k, v = shard.tokens_to_heads(divided, groups, q, k, v)
        call = call.with_term(lambda term: term.of(q, k, range(first, last)))
        named = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        tensors = {f"mechanism.{name}": named[name][first:last] for name in self.per_head_tensors}
        full_call = shard.call(call, 0, shard.length)
        out = torch.func.functional_call(_SomeHeads(self), tensors, (shard.run, self.of_heads(first, last), q, k, v, full_call))
        return shard.heads_to_tokens(divided, out)

    def of_heads(self, first: int, last: int) -> Self:
        """This mechanism restricted to the heads ``first … last - 1``. It shares all tensors; a call replaces :attr:`per_head_tensors`."""
        part = copy.copy(self)
        part.num_heads, part.head_range = last - first, (first, self.num_heads)
        return part

    def check_shard(self, shard: Shard) -> None:
        """Raise :class:`MaskError` unless every sequence starts at its row's first token. For mechanisms that count tokens."""
        if not shard.starts_at_first:
            raise MaskError(
                f"Mechanism {self.name!r} counts tokens from the first one of each sequence, which another process may have where rows are "
                "padded on the left or hold several documents; pad on the right, with one document in each row."
            )


class _SomeHeads(nn.Module):
    """Wrapper in which ``torch.func.functional_call`` replaces a mechanism's tensors by those of some heads."""

    def __init__(self, mechanism: Shardable) -> None:
        super().__init__()
        self.mechanism = mechanism

    def forward(self, run: Callable[..., Tensor], part: Shardable, *args: Any) -> Tensor:
        return run(part, *args)
