"""The option ``exact_length``: full attention for short sequences, a mechanism for long ones. Checks of a call's form are here, too.

A sequence is a batch row from its first to its last real token, or one packed document. Up to ``most`` tokens, it gets full attention.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engines.batch import Batch, SequenceSpan, first_real, in_graph, last_real, of_any_length
from ...engines.call import AttentionCall, AttentionFunction, clear_padding
from ...engines.sequences import attend_per_sequence, rolled, stacked
from ...errors import OptionError


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
    """Full attention (``in_full``) for sequences of at most ``most`` tokens, else ``by_mechanism``. Returns ``(B, H, Nq, D)``.

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
        return attend_per_sequence(functools.partial(by_length, in_full, by_mechanism, most, one_call), q, k, v, call, "split")
    q, k, v, call = clear_padding(q, k, v, call)
    outs: dict[SequenceSpan, Tensor] = {}
    for run, is_short in ((in_full, True), (by_mechanism, False)):
        chosen = [span for span in sequences if (span.length <= most) == is_short]
        outs |= zip(chosen, stacked(run, q, k, v, call, chosen), strict=True)
    return batch.join([outs[span] for span in sequences], len(q), q.shape[2], k.shape[2])


def _in_graph(
    in_full: AttentionFunction, by_mechanism: AttentionFunction, most: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall
) -> Tensor:
    """:func:`by_length` in a graph, which cannot read lengths. Both functions run on all rows, ``in_full`` on its first ``most`` tokens."""
    length, batch = k.shape[2], call.batch
    free = of_any_length(length)
    if batch is not None and batch.documents is not None:  # the mechanism's call refuses documents
        return by_mechanism(q, k, v, call)
    if not free and length <= most:
        return in_full(q, k, v, call)
    if not free and batch is None:
        return by_mechanism(q, k, v, call)
    if batch is None or batch.mask is None:
        batch = Batch(_every_token(k, length))
    mask = batch.mask
    assert mask is not None

    def first(x: Tensor, dim: int) -> Tensor:
        if free:  # the length is symbolic and may be less than `most`
            x = torch.cat([x, x.new_zeros(*x.shape[:dim], most, *x.shape[dim + 1 :])], dim)
        return x.narrow(dim, 0, most)

    def of_first(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        assert call.batch is not None
        assert call.batch.mask is not None
        short_call = call.replace(batch=Batch(first(call.batch.mask, 1))).with_term(lambda term: term.moved(first, lambda b, at: (b, at)))
        return F.pad(in_full(first(q, 2), first(k, 2), first(v, 2), short_call), (0, 0, 0, length))[:, :, :length]

    short = last_real(mask) - first_real(mask) < most
    full_call = call.for_full_attention().replace(batch=batch)
    return torch.where(short[:, None, None, None], rolled(of_first, q, k, v, full_call, batch), by_mechanism(q, k, v, call))


def weights_by_length(in_full: Any, by_mechanism: Any, most: int, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
    """The weights ``(B, H, Nq, Nk)`` of sequences that start at index 0, by ``in_full(q, k, call)`` up to ``most`` tokens.

    In a graph, padding may come after a sequence. A graph that does not know a sequence's length computes both kinds of weights.
    """
    full_call, length = call.for_full_attention(), k.shape[2]
    mask = call.key_mask if in_graph() else None
    if not of_any_length(length) and (mask is None or length <= most):
        return in_full(q, k, full_call) if length <= most else by_mechanism(q, k, call)
    short = last_real(_every_token(k, length) if mask is None else mask) < most
    return torch.where(short[:, None, None, None], in_full(q, k, full_call), by_mechanism(q, k, call))


def _every_token(k: Tensor, length: int) -> Tensor:
    """The mask ``(B, length)`` of a batch without padding."""
    return torch.ones(k.shape[0], length, dtype=torch.bool, device=k.device)


def full_of(mechanism: Any) -> Any:
    """The full attention for texts of up to ``exact_length`` tokens, its ``max_length``; ``None`` if there is none."""
    if not mechanism._full or mechanism.is_cross_attention or mechanism.ignores_exact_length:
        return None
    full = mechanism._full[0]
    if full.layer != mechanism.layer:
        full.layer = mechanism.layer
    return full


def for_length(mechanism: Any, length: int, causal: bool = False) -> Any:
    """The mechanism to run: full attention up to ``exact_length`` tokens, otherwise ``mechanism``. Always ``mechanism`` if causal."""
    full = None if causal else full_of(mechanism)
    return mechanism if full is None or length > full.max_length else full


def is_full(mechanism: Any, length: int, causal: bool) -> bool:
    """Whether a text of this length gets full attention, without memory tokens."""
    used = for_length(mechanism, length, causal)
    return used.covers(length, causal) and not (used.capabilities.recursion and used.capabilities.recursion.memory)


def why_not_in_full(mechanism: Any) -> str:
    """Why ``mechanism`` cannot use full attention for short texts; empty if it can."""
    reasons = {
        "exists in the causal form only": mechanism.causal is True,
        "reads a grid": mechanism.reads_grid,
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
            f"Mechanism {mechanism.name!r} exists only with causal={mechanism.causal}{chosen}, but {where} needs causal={causal}; "
            f"choose {'others, or ' if chosen else ''}one of hf_longattn.list_mechanisms(causal={causal})."
        )
    if causal and full_of(mechanism) is not None:
        raise OptionError(
            f"exact_length={mechanism.options.exact_length} is for attention in both directions, but {where} is causal; leave it out: "
            f"a causal window of {mechanism.options.exact_length} tokens already sees all of shorter texts."
        )
