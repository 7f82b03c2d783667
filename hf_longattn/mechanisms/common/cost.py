"""What a mechanism costs and where it equals full attention, for plans, searches, diagnoses and documents."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...engines.common.call import UNBOUNDED, AttentionCall
from ...positions.distances import Extent, untrained_distances
from .layout import full_pairs
from .sharding import Shardable

KeptKeys = Callable[[Tensor, Tensor], Tensor]
"""``(rows, scores) -> kept``: which keys the queries at ``rows (n,)`` keep, ``(B, H, n, N)`` bool (broadcastable). Their scores are
``(B, H, n, N)``, -inf for keys that causality or padding hides; such keys may be among those kept."""

RowWeights = Callable[[Tensor, Tensor], Tensor]
"""``(rows, scores) -> weights``: the weight of every key for the queries at ``rows (n,)``, ``(B, H, n, N)``, each row summing to 1."""
Reading = KeptKeys | RowWeights


class Cost(Shardable):
    """By default, a mechanism costs as much as full attention and never equals it."""

    def covers(self, length: int, causal: bool = False) -> bool:
        """Whether the mechanism equals full softmax attention for every input of up to ``length`` tokens."""
        return False

    def pairs(self, length: int, causal: bool = False) -> int:
        """Query–key products of one head for an input of ``length`` tokens, the unit in which costs are compared.

        Closed forms, which tests compare with the listed pairs: listing them takes 0.1 to 0.5 s at 131,072 tokens.
        """
        return full_pairs(length, causal)

    def band(self, causal: bool) -> tuple[int, int] | None:
        """``(back, ahead)``, where the mechanism is softmax attention to all keys of these distances at any length, as a model's own window
        and full attention are; ``None`` for anything else."""
        everything = self.relative is None and self.covers(UNBOUNDED, causal)
        return (UNBOUNDED, 0 if causal else UNBOUNDED) if everything else None

    def kept_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> KeptKeys | None:
        """The keys of full attention that each query keeps, where the mechanism is softmax over some of them; ``None`` for anything else.

        For some rows at a time, in memory linear in N, without the values and for any queries: :mod:`hf_longattn.diagnostics` measures how
        much of the softmax's mass is kept.

        Args:
            q, k: ``(B, H, N, D)``, ``(B, H_kv, N, D)`` of whole sequences, by which data-dependent mechanisms select.
        """
        return None

    def row_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> RowWeights | None:
        """The weights of the keys, where the mechanism is one softmax over keys and means of keys, whose weight their keys share; ``None``
        for anything else. Arguments and memory as for :meth:`kept_keys`."""
        return None

    def extent(self, causal: bool) -> Extent | None:
        """The range of the keys of one query, global tokens and sinks apart; ``None`` if that is not bounded, or decided by content."""
        local = self.locality(causal)
        if local is None:
            return None
        counted = local.period - 1 if local.ahead else 0  # the further a query is into its block, the less of it lies ahead
        return Extent(local.back, local.ahead, local.back + local.ahead - counted)

    def untrained_distances(self, rule: str, trained: int, length: int, causal: bool) -> str:
        """Why positions that are extended by ``rule`` do not hold for this mechanism without training, as
        :func:`~hf_longattn.positions.untrained_distances` says; empty if they do."""
        return untrained_distances(rule, trained, length, self.extent(causal), self.reach())
