"""The cost of a mechanism, and where it equals full attention. For plans, searches, diagnoses and documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from ...engines.common.call import UNBOUNDED, AttentionCall
from ...positions.distances import Extent, untrained_distances
from .layout import full_pairs
from .ordered import keys_in_order
from .sharding import Shardable
from .short_texts import for_length

if TYPE_CHECKING:
    from .base import Mechanism

KeysOrWeights = Callable[[Tensor, Tensor], Tensor]
"""``(rows, scores) ->`` the keys that the queries at ``rows (n,)`` keep, ``(B, H, n, N)`` bool (broadcastable); or, for one softmax over
keys and means of keys, the weight of every key, ``(B, H, n, N)``, each row summing to 1. The keys of a mean share its weight.
``scores (B, H, n, N)`` are -inf for keys hidden by causality or padding; keys kept may be hidden."""


class Cost(Shardable):
    """By default, a mechanism costs as much as full attention and never equals it."""

    def covers(self, length: int, causal: bool = False) -> bool:
        """Whether the mechanism equals full softmax attention for every input of up to ``length`` tokens."""
        return False

    def pairs(self, length: int, causal: bool = False) -> int:
        """The number of query-key products of one head for ``length`` tokens, the unit of cost.

        Computed in closed form, since listing the pairs takes 0.1 to 0.5 s at 131,072 tokens. Tests compare both.
        """
        return full_pairs(length, causal)

    def band(self, causal: bool) -> tuple[int, int] | None:
        """The distances ``(back, ahead)`` of a mechanism that is exactly a sliding window or full attention at any length.
        ``None`` for all others."""
        everything = self.relative is None and self.covers(UNBOUNDED, causal)
        return (UNBOUNDED, 0 if causal else UNBOUNDED) if everything else None

    def kept_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> KeysOrWeights | None:
        """The keys that each query keeps, or the weights of all keys, if the mechanism is one softmax; ``None`` for anything else.

        Works on some rows at a time, in memory linear in N, without the values and for any queries. :mod:`hf_longattn.diagnostics` uses it
        to measure how much of the softmax's mass is kept.

        Args:
            q, k: ``(B, H, N, D)``, ``(B, H_kv, N, D)`` of whole sequences, from which data-dependent mechanisms select keys.
        """
        return None

    def extent(self, causal: bool) -> Extent | None:
        """The range of one query's keys, without global tokens and sinks; ``None`` if it is unbounded or depends on content."""
        local = self.locality(causal)
        if local is None:
            return None
        counted = local.period - 1 if local.ahead else 0  # the further a query is into its block, the less of it lies ahead
        return Extent(local.back, local.ahead, local.back + local.ahead - counted)


def needs_training_by(mechanism: Cost, rule: str, trained: int, length: int, causal: bool) -> str:
    """Why ``mechanism`` needs training if positions are extended by ``rule``; empty if it does not. See
    :func:`~hf_longattn.positions.untrained_distances`."""
    return untrained_distances(rule, trained, length, mechanism.extent(causal), mechanism.reach())


def keys_or_weights(mechanism: Mechanism, q: Tensor, k: Tensor, call: AttentionCall) -> KeysOrWeights | None:
    """:meth:`Mechanism.kept_keys` with the options ``order`` and ``exact_length`` applied.

    Raises:
        GridError: the option ``order`` is set, and the call has no grid, is causal or has fewer queries than keys.
    """
    if (full := for_length(mechanism, k.shape[2], call.causal)) is not mechanism:
        mechanism, call = full, call.replace(global_mask=None)
    if mechanism.options.order is None:
        return mechanism.kept_keys(q, k, call)
    return keys_in_order(mechanism.options.order, mechanism.kept_keys, q, k, call)
