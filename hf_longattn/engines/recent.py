"""The last keys of a query's bucket, out of the buckets of a whole cache: for a few queries, in one pass over small integers."""

from __future__ import annotations

import torch
from torch import Tensor


def recent_places(keys: Tensor, queries: Tensor, positions: Tensor, size: int) -> Tensor:
    """The last ``size`` keys at or before each query whose bucket is the query's, in every round.

    Args:
        keys: ``(B, H, R, N)``, bucket of the key at each position; negative where there is no key to be seen.
        queries: ``(B, H, R, Nq)`` of the same dtype; positions: ``(B, Nq)`` of the queries.
    Returns:
        ``(B, H, R, Nq, size)`` int64, positions, latest first; -1 where a bucket holds fewer.
    """
    batch, heads, rounds, length = keys.shape
    q_len = queries.shape[-1]
    same = keys[:, :, :, None] == queries[..., None]
    if q_len > 1 or bool((positions < length - 1).any()):
        same &= (torch.arange(length, device=keys.device) <= positions[..., None])[:, None, None]
    row, place = same.view(-1, length).nonzero().unbind(1)  # by row, and rising in each
    behind = torch.bincount(row, minlength=batch * heads * rounds * q_len).cumsum(0)[row] - 1 - torch.arange(len(row), device=row.device)
    kept = behind < size
    found = place.new_full((batch * heads * rounds * q_len, size), -1)
    found[row[kept], behind[kept]] = place[kept]
    return found.view(batch, heads, rounds, q_len, size)


def met_before(places: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    """Which of ``places``, as :func:`recent_places` returned them, an earlier round has found as well; same shape, bool."""
    rounds = places.shape[2]
    twice = torch.zeros_like(places, dtype=torch.bool)
    for earlier in range(rounds - 1):
        later = places[:, :, earlier + 1 :].clamp(min=0)
        bucket = keys[:, :, earlier].gather(-1, later.flatten(2)).view(later.shape)
        oldest = places[:, :, earlier, :, -1]  # -1, so that every key of the bucket was found, where it holds fewer than `size`
        twice[:, :, earlier + 1 :] |= (bucket == queries[:, :, None, earlier, :, None]) & (later >= oldest[:, :, None, :, None])
    return twice & (places >= 0)
