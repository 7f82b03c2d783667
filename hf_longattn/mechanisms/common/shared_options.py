"""The options that all mechanisms share: ``exact_length`` and ``relative``. Checks of a call's form are here, too.

``exact_length``: full attention for short sequences, the mechanism for long ones. A sequence is a batch row from its
first to its last real token, or one packed document. It gets full attention if it has at most ``exact_length`` tokens,
which functions here call ``most``.

``relative``: relative positions as a score term. A hook adds the term before ``forward``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engines.batch import Batch, SequenceSpan, first_real, in_graph, last_real, of_any_length
from ...engines.call import AttentionCall, AttentionFunction, clear_padding
from ...engines.score_terms import chain_score_mods
from ...engines.sequences import rolled, split, stacked
from ...errors import OptionError
from ...positions.relative import RelativePositions
from .capabilities import largest_distances


def in_full_if_short(
    in_full: AttentionFunction, by_mechanism: AttentionFunction, alone: AttentionFunction, most: int, one_call: bool
) -> AttentionFunction:
    """A function that attends with ``in_full`` to sequences of at most ``most`` tokens, and with ``by_mechanism`` to
    longer ones.

    Args:
        in_full: full attention.
        by_mechanism: the mechanism's attention.
        alone: attention of one sequence, which chooses between both by the length.
        one_call: whether all longer sequences must share one call of the mechanism.
    """

    def of_short(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        return in_full(q, k, v, call.for_full_attention())

    def run(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, Nq, D)``.

        A batch with short and long sequences takes two calls if ``one_call`` is True, else a call for each sequence.
        """
        if in_graph():
            return _in_graph(of_short, by_mechanism, most, q, k, v, call)
        batch = call.batch
        assert batch is not None
        sequences = batch.sequences
        num_short = sum(span.length <= most for span in sequences)
        if num_short == 0:
            return by_mechanism(q, k, v, call)
        if num_short == len(sequences):
            return of_short(q, k, v, call)
        if not one_call:
            return split(alone, q, k, v, call)
        q, k, v, call = clear_padding(q, k, v, call)
        # one call for all short sequences, and one for all longer ones
        outs: dict[SequenceSpan, Tensor] = {}
        for attend, is_short in ((of_short, True), (by_mechanism, False)):
            chosen = [span for span in sequences if (span.length <= most) == is_short]
            outs |= zip(chosen, stacked(attend, q, k, v, call, chosen), strict=True)
        return batch.join([outs[span] for span in sequences], len(q), q.shape[2], k.shape[2])

    return run


def _in_graph(
    in_full: AttentionFunction,
    by_mechanism: AttentionFunction,
    most: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: AttentionCall,
) -> Tensor:
    """:func:`in_full_if_short` in a graph, which cannot read the lengths of sequences.

    Both functions run on all rows, ``in_full`` on the first ``most`` tokens of each. The length of a row then selects
    the result.
    """
    length, batch = k.shape[2], call.batch
    symbolic = of_any_length(length)
    if batch is not None and batch.documents is not None:  # the mechanism's call refuses documents
        return by_mechanism(q, k, v, call)
    if not symbolic and length <= most:
        return in_full(q, k, v, call)
    if not symbolic and batch is None:
        return by_mechanism(q, k, v, call)
    if batch is None or batch.mask is None:
        batch = Batch(torch.ones(k.shape[0], length, dtype=torch.bool, device=k.device))
    mask = batch.mask
    assert mask is not None

    def first(x: Tensor, dim: int) -> Tensor:
        """The first ``most`` entries of axis ``dim``."""
        if symbolic:  # the length may be less than `most`
            x = torch.cat([x, x.new_zeros(*x.shape[:dim], most, *x.shape[dim + 1 :])], dim)
        return x.narrow(dim, 0, most)

    def of_first(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """Full attention of the first ``most`` tokens, with zeros for all others, ``(B, H, length, D)``."""
        assert call.batch is not None
        assert call.batch.mask is not None
        call = call.replace(batch=Batch(first(call.batch.mask, 1)))
        call = call.with_term(lambda term: term.moved(first, lambda b, position: (b, position)))
        out = in_full(first(q, 2), first(k, 2), first(v, 2), call)
        return F.pad(out, (0, 0, 0, length))[:, :, :length]

    short = last_real(mask) - first_real(mask) < most
    full_call = call.for_full_attention().replace(batch=batch)
    return torch.where(short[:, None, None, None], rolled(of_first, q, k, v, full_call), by_mechanism(q, k, v, call))


def weights_by_length(in_full: Any, by_mechanism: Any, most: int, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
    """The weights ``(B, H, Nq, Nk)`` of sequences that start at index 0: ``in_full(q, k, call)`` for at most ``most``
    tokens, ``by_mechanism(q, k, call)`` for more.

    In a graph, padding may come after a sequence. A graph that does not know a sequence's length computes both kinds
    of weights.
    """
    full_call = call.for_full_attention()
    length = k.shape[2]
    mask = call.key_mask if in_graph() else None
    if not of_any_length(length) and (mask is None or length <= most):
        return in_full(q, k, full_call) if length <= most else by_mechanism(q, k, call)
    mask = torch.ones(k.shape[0], length, dtype=torch.bool, device=k.device) if mask is None else mask
    short = last_real(mask) < most
    return torch.where(short[:, None, None, None], in_full(q, k, full_call), by_mechanism(q, k, call))


def full_of(mechanism: Any) -> Any:
    """The full attention to which the mechanism hands short texts or single queries; ``None`` without the options
    ``exact_length`` and ``full_decoding``.

    Its ``sizes.max_length`` is ``exact_length``, or 0 if it is for single queries only.
    """
    if not mechanism._full or mechanism.is_cross_attention:
        return None
    return mechanism._full[0]


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
    """The mechanism that runs a call for ``length`` tokens: full attention or ``mechanism``.

    A bidirectional call gets full attention up to ``exact_length`` tokens. A causal call gets it if there is one query
    and the option ``full_decoding`` is set.
    """
    if causal and queries != 1:
        return mechanism
    full = full_of(mechanism)
    if full is None or (not causal and length > full.sizes.max_length):
        return mechanism
    return full


def is_full(mechanism: Any, length: int, causal: bool) -> bool:
    """Whether texts of ``length`` tokens get full attention, without memory tokens."""
    used = for_length(mechanism, length, causal)
    recursion = used.capabilities.recursion
    return used.covers(length, causal) and not (recursion and recursion.memory)


def why_not_in_full(mechanism: Any) -> str:
    """Why ``mechanism`` cannot use full attention for short texts, as a predicate; empty if it can."""
    reasons = {
        "exists in the causal form only": mechanism.causal is True,
        "reads a grid": mechanism.capabilities.needs_grid,
        "passes memory tokens from segment to segment": mechanism.capabilities.recursion is not None,
        "counts padding with these options": not mechanism.capabilities.ignores_padding,
        "adds relative positions to the scores": mechanism.relative is not None,
    }
    for reason, applies in reasons.items():
        if applies:
            return reason
    return ""


def check_form(mechanism: Any, causal: bool, where: str) -> None:
    """Raise :class:`OptionError` if these options lack the form (causal or bidirectional) that ``where`` needs.

    where: the place of the call, for the message.
    """
    if mechanism.causal not in ("both", causal):
        scope, advice = "", "choose"
        if type(mechanism).causal != mechanism.causal:
            scope, advice = " with these options", "choose other options, or"
        raise OptionError(
            f"Mechanism {mechanism.name!r} exists only with causal={mechanism.causal}{scope}, but {where} needs "
            f"causal={causal}; {advice} one of hf_longattn.list_mechanisms(causal={causal})."
        )
    if causal and mechanism.options.exact_length and full_of(mechanism) is not None:
        length = mechanism.options.exact_length
        raise OptionError(
            f"exact_length={length} is for attention in both directions, but {where} is causal; leave it out, "
            f"since a causal window of {length} tokens already sees all of shorter texts. For another attention "
            "in the decoder, call EncoderDecoderModel.from_encoder_decoder_pretrained with "
            f"decoder_long_attention={{'mechanism': 'window', 'window': {length}}}."
        )


AttendedKeys = Callable[[Tensor, Tensor], Tensor]
"""``(rows, scores)`` -> mask of the keys that queries attend to, ``(B, H, n, N)`` bool (broadcastable).

``rows (n,)`` are the queries' indices. ``scores (B, H, n, N)`` are -inf for keys hidden by causality or padding; the
mask may include these keys."""


def attended_keys_of(mechanism: Any, q: Tensor, k: Tensor, call: AttentionCall) -> AttendedKeys | None:
    """:meth:`Mechanism.attended_keys`, or those of full attention for texts of up to ``exact_length`` tokens."""
    used = for_length(mechanism, k.shape[2], call.causal)
    if used is not mechanism:
        call = call.replace(global_mask=None)
    return used.attended_keys(q, k, call)


def add_relative(module: Any, args: tuple[Tensor, Tensor, Tensor, AttentionCall]) -> tuple[Any, ...]:
    """Forward pre-hook of mechanisms with relative positions."""
    q, k, v, call = args
    return q, k, v, with_relative(module, q, k, call)


def relative_of(mechanism: Any, k: Tensor, call: AttentionCall) -> RelativePositions | None:
    """The mechanism's relative positions; ``None`` if they change no score of a call with keys
    ``k (B, H_kv, Nk, D)``."""
    relative: RelativePositions | None = mechanism.relative
    if relative is None or not relative.changes(k.shape[2], call):
        return None
    return relative


def with_relative(mechanism: Any, q: Tensor, k: Tensor, call: AttentionCall) -> AttentionCall:
    """``call`` with the relative positions as a score term.

    Code that attends without ``forward``, such as a decode cache, calls ``RelativePositions.term`` instead.
    """
    relative = relative_of(mechanism, k, call)
    if relative is None:
        return call
    visible = largest_distances(mechanism, q.shape[2], k.shape[2], call.causal)
    term = relative.score_term(q, k, call.causal, call.scale_for(mechanism.head_dim), visible)
    if term is None:
        return call
    return call.replace(score_mod=chain_score_mods(term, call.score_mod))


def with_dense_terms(
    mechanism: Any, q: Tensor, k: Tensor, call: AttentionCall
) -> tuple[Tensor, Tensor, AttentionCall]:
    """``q``, ``k``, and ``call`` with the relative positions as a score term by their N×N definition."""
    relative = relative_of(mechanism, k, call)
    if relative is None:
        return q, k, call
    first = k.shape[2] - q.shape[2]  # position of the first query
    positions = torch.arange(k.shape[2], device=q.device)[None]
    term = relative.term(q, k, positions[:, first:], positions, call.causal, call.scale_for(mechanism.head_dim))

    def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score + term[b.clamp(max=len(term) - 1), h, (q_idx - first).clamp(min=0), kv_idx]

    return q, k, call.replace(score_mod=chain_score_mods(mod, call.score_mod))
