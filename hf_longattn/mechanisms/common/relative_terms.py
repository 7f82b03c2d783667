"""The option ``relative``: relative positions as a score term. A hook adds it before ``forward``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...engines.call import AttentionCall
from ...engines.score_terms import ScoreTerm, chain_score_mods
from .locality import largest_distances


def add_relative(module: Any, args: tuple[Tensor, Tensor, Tensor, AttentionCall]) -> tuple[Any, ...]:
    """Forward pre-hook that adds the relative positions, unless ``forward`` adds them itself."""
    if module.handling.adds_relative:
        return args
    q, k, v, call = args
    return q, k, v, with_relative(module, q, k, call)


def with_relative(mechanism: Any, q: Tensor, k: Tensor, call: AttentionCall) -> AttentionCall:
    """``call`` with the relative positions added. Code that attends without ``forward``, such as a decode cache, calls
    ``RelativePositions.term`` itself."""
    term = None if mechanism.relative is None else relative_term(mechanism, q, k, call)
    return call if term is None else call.replace(score_mod=chain_score_mods(term, call.score_mod))


def relative_term(mechanism: Any, q: Tensor, k: Tensor, call: AttentionCall) -> ScoreTerm | None:
    """The score term for ``q (B, H, Nq, D)`` at the last positions of ``k (B, H_kv, Nk, D)``, or ``None``."""
    visible = largest_distances(mechanism, q.shape[2], k.shape[2], call.causal)
    return mechanism.relative.score_term(q, k, call.causal, call.scale_for(mechanism.head_dim), visible)


def with_dense_terms(mechanism: Any, q: Tensor, k: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor, AttentionCall]:
    """:func:`with_relative`, with terms by their N×N definition."""
    if mechanism.relative is None:
        return q, k, call
    q_len, kv_len = q.shape[2], k.shape[2]
    places = torch.arange(kv_len, device=q.device)[None]
    term = mechanism.relative.term(q, k, places[:, kv_len - q_len :], places, call.causal, call.scale_for(mechanism.head_dim))

    def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score + term[b.clamp(max=len(term) - 1), h, (q_idx - (kv_len - q_len)).clamp(min=0), kv_idx]

    return q, k, call.replace(score_mod=chain_score_mods(mod, call.score_mod))
