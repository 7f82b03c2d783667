"""Scores: relative positions as a term of them, and functions for writing definitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engines.common.call import AttentionCall
from ...engines.common.dense import grid_of, index_grid, repeat_heads
from ...engines.common.score_terms import ScoreTerm, chain_score_mods
from ...positions.relative import RelativePositions, Span, build_relative
from .decoding import Decoding

if TYPE_CHECKING:
    from ...options import Options


class ScoreTerms(Decoding):
    """The option ``relative``: positions as a term of the scores, added by a hook before ``forward``."""

    head_dim: int
    relative: RelativePositions | None

    def build_relative(self, options: Options, num_heads: int, head_dim: int, hidden_size: int) -> None:
        """Build the relative positions of the options, if any, and register the hook."""
        self.relative = None
        if options.relative is not None:
            self.relative = build_relative(options.relative, num_heads, head_dim, hidden_size)
            self.register_forward_pre_hook(_with_relative)

    def with_relative(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> AttentionCall:
        """``call`` with the relative positions added to its score term. The hook calls this."""
        term = self.relative_term(q, k, call)
        return call if term is None else call.replace(score_mod=chain_score_mods(term, call.score_mod))

    def relative_term(self, q: Tensor, k: Tensor, call: AttentionCall) -> ScoreTerm | None:
        """The score term of relative positions, or ``None``. ``q (B, H, Nq, D)`` are the last queries of ``k (B, H_kv, Nk, D)``.

        A hook passes it to ``forward``. Code that attends without ``forward``, such as a decode cache, passes it on itself.
        """
        if self.relative is None:
            return None
        span = self.span(q.shape[2], k.shape[2], call.causal)
        return self.relative.score_term(q, k, call.causal, call.scale_for(self.head_dim), span)

    def span(self, q_len: int, kv_len: int, causal: bool) -> Span:
        """The furthest visible distances of this call, back (query - key) and ahead (key - query)."""
        reach = self.reach() if causal else None
        return (kv_len if reach is None else min(reach, kv_len)) - 1, 0 if causal else q_len - 1

    def with_dense_terms(self, q: Tensor, k: Tensor, call: AttentionCall) -> AttentionCall:
        """``call`` with the N×N definition of the relative positions added to its score term."""
        if self.relative is None:
            return call
        q_len, kv_len = q.shape[2], k.shape[2]
        places = torch.arange(kv_len, device=q.device)
        distance = places[None, kv_len - q_len :, None] - places
        term = self.relative.term(q, k, distance, call.causal, call.scale_for(self.head_dim))

        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return score + term[b.clamp(max=len(term) - 1), h, (q_idx - (kv_len - q_len)).clamp(min=0), kv_idx]

        return call.replace(score_mod=chain_score_mods(mod, call.score_mod))


def _with_relative(module: ScoreTerms, args: tuple[Tensor, Tensor, Tensor, AttentionCall]) -> tuple[Any, ...]:
    """Forward pre-hook that adds the relative positions to the call's score term."""
    q, k, v, call = args
    return q, k, v, module.with_relative(q, k, v, call)


def scaled_scores(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
    """``q·k · scale`` for all pairs, with the call's score term applied, ``(B, H, Nq, Nk)``."""
    scores = (q @ repeat_heads(k, q.shape[1]).transpose(-1, -2)) * call.scale_for(q.shape[-1])
    return scores if call.score_mod is None else call.score_mod(scores, *grid_of(q, k))


def visible_to_all(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
    """The pairs left visible by causality and padding, ``(B or 1, 1, Nq, Nk)`` bool."""
    _, _, q_idx, kv_idx = index_grid(1, 1, q.shape[2], k.shape[2], q.device)
    seen = (kv_idx <= q_idx) if call.causal else (kv_idx >= 0).expand(1, 1, q.shape[2], -1)
    return seen if call.key_mask is None else seen & call.key_mask[:, None, None, :]


def softmax_over(scores: Tensor, visible: Tensor) -> Tensor:
    """Softmax over the last axis of ``scores`` where ``visible``; rows that see nothing are zeros."""
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.where(visible.any(-1, keepdim=True), weights, torch.zeros((), dtype=weights.dtype, device=weights.device))


def normalised(weights: Tensor) -> Tensor:
    """Non-negative ``weights (…, Nk)`` divided by their row sums; rows of zeros stay zeros."""
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total == 0, 1.0, total)


def pad_queries(q: Tensor, length: int) -> Tensor:
    """``q (B, H, Nq, D)``, the last queries of a sequence, padded in front with zeros to ``length`` tokens."""
    missing = length - q.shape[2]
    return F.pad(q, (0, 0, missing, 0)) if missing else q


def drop_keys(v: Tensor, dropout_p: float) -> Tensor:
    """Values ``(B, H, Nk, D)`` after dropout of whole keys. For mechanisms without a weight matrix to apply dropout to."""
    return v * F.dropout(v.new_ones(*v.shape[:3], 1), dropout_p) if dropout_p else v
