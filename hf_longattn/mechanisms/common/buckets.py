"""Base of mechanisms that hash or cluster tokens into buckets.

Each round assigns every token to a bucket. Query i and key j meet in a round if they share a bucket (a mechanism may
add conditions). The multiplicity M_ij is the number of rounds in which they meet. The definition is

    weights_ij  ∝  M'_ij exp(s_ij + a_ij),    M' = M if duplicates count, else 1 where M > 0

where a is a learned affinity, or 0. A query that meets no key attends to its own position. Buckets are computed
without gradients, in float64 if the device has it, so that neither batch shape nor padding changes a token's bucket.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engines.call import AttentionCall, GatherTile
from ...engines.dense import dense_attention, repeat_heads
from ...engines.dispatch import choose
from ...engines.gathered import gathered_attention
from ...engines.score_terms import add_term
from .base import Mechanism, pad_queries, scaled_scores, softmax_over
from .shared_options import AttendedKeys


class BucketedMechanism(Mechanism):
    """A mechanism on the bucketed engine. Methods that find buckets get raw keys: rounding in :meth:`prepared` could
    change a bucket."""

    count_duplicates: bool = False
    """Whether a pair that meets in several rounds counts once per round."""
    plain_scores: bool = True
    """Whether scores equal those of full attention: unchanged queries and keys, no affinity."""

    @abstractmethod
    def meets(self, q: Tensor, k: Tensor, call: AttentionCall) -> Callable[[Tensor], Tensor]:
        """The definition: in how many rounds queries meet each key.

        Args:
            q: ``(B, H, Nq, D)``, the last Nq positions.
            k: ``(B, H, Nk, D)``.
        Returns:
            A function ``rows (n,)`` -> ``(B, H, n, Nk)`` int for the queries at positions ``rows``.
        """

    @abstractmethod
    def visits(
        self, q: Tensor, k: Tensor, q_len: int, call: AttentionCall
    ) -> tuple[tuple[GatherTile, ...], Tensor | None]:
        """The pairs of :meth:`meets`, found without comparing all pairs.

        Args:
            q, k: ``(B, H, N, D)``. Only the last ``q_len`` tokens of ``q`` are queries.
        Returns:
            The pairs as tiles without padding keys, and a mask ``(B, H, N)`` bool of the queries that meet no key,
            arbitrary at padding. The mask is ``None`` if every query meets a key.
        """

    def prepared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors whose products are the scores, ``(B, H, Nq, D)`` and ``(B, H, Nk, D)``."""
        return q, repeat_heads(k, q.shape[1])

    def attended_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> AttendedKeys | None:
        """The keys that a query meets, or its own position if it meets none.

        ``None`` if weights are not those of one softmax over keys.
        """
        if self.count_duplicates or not self.plain_scores:
            return None
        meets = self.meets(q, repeat_heads(k, q.shape[1]), call)
        positions = torch.arange(k.shape[2], device=k.device)

        def attended(rows: Tensor, scores: Tensor) -> Tensor:
            met = meets(rows) > 0
            own_position = rows[:, None] == positions  # for queries that meet no key
            return met | (~met.any(-1, keepdim=True) & own_position)

        return attended

    def multiplicity(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The multiplicity M', ``(B, H, Nq, Nk)`` int; 0 at padding queries and keys. ``q`` and ``k`` have the shapes
        of :meth:`meets`."""
        positions = torch.arange(k.shape[2], device=k.device)
        rows = positions[k.shape[2] - q.shape[2] :]
        count = self.meets(q, k, call)(rows)
        real = call.real(k)
        no_visible_key = ~(count > 0).any(-1, keepdim=True)
        count = torch.where(no_visible_key & (rows[:, None] == positions), 1, count)
        count = count * (real[:, None, None, :] & real[:, None, rows, None])
        return count if self.count_duplicates else count.clamp(max=1)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        raw_keys = repeat_heads(k, q.shape[1])
        q, k = self.prepared(q, k)
        count = self.multiplicity(q, raw_keys, call)
        scores = scaled_scores(q, k, self.counted(q, k, call, count))
        return softmax_over(scores, count > 0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, Nq, D)``: dense for short texts, else over the tiles of :meth:`visits`."""
        q_len, kv_len = q.shape[2], k.shape[2]
        packed = call.batch is not None and call.batch.documents is not None
        path = "" if packed else choose("pairs", q, k, call, covered=self.covers(kv_len, call.causal))
        if path == "dense":
            return dense_attention(q, k, v, call)
        raw_keys, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        q, k = self.prepared(q, k)
        if path == "dense-masked":
            count = self.multiplicity(q, raw_keys, call)
            counted_call = self.counted(q, k, call, count).replace(causal=False, batch=None)
            return dense_attention(q, k, v, counted_call, mask_mod=lambda *_: count > 0)

        q = pad_queries(q, kv_len)
        tiles, no_visible_key = self.visits(q, raw_keys, q_len, call)
        out = gathered_attention(q, k, v, tiles, call.with_mask(None))  # the tiles list real keys only
        if no_visible_key is not None:  # these queries attend to their own position
            if call.key_mask is not None:
                no_visible_key = no_visible_key & call.key_mask[:, None]
            own_value = v
            if call.dropout:
                own_value = F.dropout(torch.ones_like(v[..., :1]), call.dropout) * v
            out = torch.where(no_visible_key[..., None], own_value, out)
        return out[:, :, kv_len - q_len :]

    def counted(self, q: Tensor, k: Tensor, call: AttentionCall, count: Tensor) -> AttentionCall:
        """``call`` with a score term for dense attention over :meth:`prepared` queries and keys.

        If duplicates count, the term is the log of the multiplicity ``count (B, H, Nq, Nk)``. A mechanism with a
        learned affinity a_ij overrides this method and adds a_ij, too.
        """
        if not self.count_duplicates:
            return call
        logarithm = count.clamp(min=1).to(torch.promote_types(q.dtype, torch.float32)).log()
        return call.replace(score_mod=add_term(call.score_mod, lambda *_: logarithm))


def recent_in_bucket(query_buckets: Tensor, key_buckets: Tensor, real: Tensor, size: int, rows: Tensor) -> Tensor:
    """Mask ``(B, H, n, N)`` of the last ``size`` keys in each query's bucket, up to the query.

    Args:
        query_buckets: ``(B, H, n)``, of the queries at positions ``rows (n,)``.
        key_buckets: ``(B, H, N)``.
        real: ``(B, N)`` bool, False for padding.
    """
    past = torch.arange(key_buckets.shape[-1], device=key_buckets.device) <= rows[:, None]
    same = (query_buckets[..., :, None] == key_buckets[..., None, :]) & past & real[:, None, None, :]
    newer = same.flip(-1).cumsum(-1).flip(-1)
    return same & (newer <= size)
