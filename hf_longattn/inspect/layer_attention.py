"""The softmax of one layer for some queries at a time, and the numbers that are measured on it.

Let s_ij be the score of key j for query i, and p_ij = softmax_j(s_ij) over the keys that query i sees. The numbers of
a head are means over queries i:

    effective_tokens   exp(-Σ_j p_ij log p_ij), the perplexity: so many tokens with equal weights have the same entropy
    largest_weight     max_j p_ij
    first_tokens       Σ_{j < 4} p_ij: the attention sink (Xiao et al. 2023, StreamingLLM, section 3.1)
    distance[b]        Σ p_ij over the keys j whose distance |i-j| is in bin b: 0, 1, 2-3, 4-7, 8-15, …
    captured[c]        Σ_j min(p_ij, w_ij), where w_ij are the weights of candidate c: 1 minus the total variation
                       distance of p and w. If c is a softmax over some of the keys, this equals Σ_j p_ij over the keys
                       that c keeps.

Scores are computed in fp32 (in fp64 for fp64 inputs), for so few queries at a time that memory is linear in the number
of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engines.call import AttentionCall
from ..engines.dense import at_least_fp32, grid_of, products, repeat_heads
from ..engines.dense_masks import hidden_pairs
from ..mechanisms.common.shared_options import AttendedKeys
from ..positions.relative import RelativePositions

SINK = 4
"""Number of tokens at the start of the text that count as first tokens."""
SCORES_IN_MEMORY = 1 << 22
"""Maximum number of scores in memory at a time, in all heads together."""
MEANS = ("effective_tokens", "largest_weight", "first_tokens")
"""Names of the numbers of a head, in the order in which tables show them."""


@dataclass(frozen=True)
class LayerAttention:
    """Queries and keys of a layer's attention call, for one sequence.

    Attributes:
        q: queries ``(1, H, N, D)``, after norms and rotations.
        k: keys ``(1, H_kv, N, D)``, after norms and rotations.
        call: causality, padding, the scale, and the terms and caps that the model applies to its scores.
        relative: relative positions of the layer's mechanism; ``None`` if it has none.
        within: the keys over which the softmax runs, such as a sliding window of the base model; ``None`` = all keys.
        name: name of the attention module.
        mechanism: name of the mechanism.
    """

    q: Tensor
    k: Tensor
    call: AttentionCall
    relative: RelativePositions | None = None
    within: AttendedKeys | None = None
    name: str = ""
    mechanism: str = ""

    @property
    def length(self) -> int:
        """Number of tokens N."""
        return self.k.shape[2]

    @property
    def heads(self) -> int:
        """Number of query heads H."""
        return self.q.shape[1]

    def scores(self, rows: Tensor) -> Tensor:
        """The scores ``(1, H, n, N)`` of the queries with the indices ``rows (n,)``.

        They are -inf for keys that a query does not see.
        """
        q = self.q[:, :, rows]
        scale = self.call.scale_for(self.q.shape[-1])
        scores = products(q, repeat_heads(self.k, self.heads)) * scale
        b, h, _, keys = grid_of(q, self.k)  # indices of batch, heads and keys

        # Terms that the model adds
        if self.relative is not None:
            k = at_least_fp32(self.k)
            term = self.relative.term(at_least_fp32(q), k, rows[None], keys.view(1, -1), self.call.causal, scale)
            scores = scores + term.to(scores.dtype)
        if self.call.score_mod is not None:
            scores = self.call.score_mod(scores, b, h, rows.view(1, 1, -1, 1), keys)

        # Keys that are not seen
        if self.call.causal:
            scores = scores.masked_fill(keys > rows[:, None], float("-inf"))
        if self.call.key_mask is not None:
            scores = scores.masked_fill(~self.call.key_mask[:, None, None, :], float("-inf"))
        if self.within is not None:
            scores = scores.masked_fill(~self.within(rows, scores), float("-inf"))
        return scores

    def blocks(self, rows: Tensor) -> Iterator[Tensor]:
        """Split the indices of queries ``rows`` so that each block has at most :data:`SCORES_IN_MEMORY` scores.

        Padding is left out.
        """
        rows = rows.to(self.k.device)
        if self.call.key_mask is not None:
            rows = rows[self.call.key_mask[0, rows]]
        yield from rows.split(max(1, SCORES_IN_MEMORY // (self.heads * self.length)))


@dataclass(frozen=True)
class LayerDiagnosis:
    """The numbers of one layer at one length. All tensors are float64.

    Attributes:
        name: name of the attention module.
        mechanism: name of the mechanism that runs in the layer.
        numbers: name in :data:`MEANS` -> the number of each head, ``(H,)``.
        distance: the mass in each bin of distances, ``(H, bins)``.
        captured: the mass that each candidate keeps, ``(H, candidates)``; NaN for a candidate that is not applicable.
    """

    name: str
    mechanism: str
    numbers: Mapping[str, Tensor]
    distance: Tensor
    captured: Tensor


class RowSums:
    """Sums of the numbers of one layer over queries, from which :meth:`mean` makes means.

    Args:
        candidates: number of candidates.
    """

    def __init__(self, layer: LayerAttention, candidates: int) -> None:
        self.names = (layer.name, layer.mechanism)
        self.bins = distance_bins(layer.length - 1)
        self.count = 0
        self.sums = {name: torch.zeros(layer.heads, dtype=torch.float64) for name in MEANS}
        self.distance = torch.zeros(layer.heads, len(self.bins), dtype=torch.float64)
        self.captured = torch.zeros(layer.heads, candidates, dtype=torch.float64)

    def add(self, layer: LayerAttention, rows: Tensor, candidates: Sequence[AttendedKeys | None]) -> None:
        """Add the queries with the indices ``rows``.

        A candidate that is not applicable is ``None``, and its sum stays 0.
        """
        for block in layer.blocks(rows):
            scores = layer.scores(block)  # (1, H, n, N)
            seen = ~hidden_pairs(scores)
            sees_keys = seen.any(-1).all(1).all(0)
            if not bool(sees_keys.all()):  # leave out queries that see no key in some head
                block = block[sees_keys]
                scores = scores[:, :, sees_keys]
                seen = seen[:, :, sees_keys]
            weights = scores.softmax(-1)
            self.count += len(block)

            # Means
            entropy = scores.logsumexp(-1) - (weights * scores.masked_fill(~seen, 0.0)).sum(-1)
            numbers = (entropy.exp(), weights.amax(-1), weights[..., :SINK].sum(-1))
            for name, values in zip(MEANS, numbers, strict=True):
                self.sums[name] += values.double().sum((0, 2)).cpu()

            # Mass by distance. The bin is the number of binary digits of the distance, which is exact below 2⁵².
            distance = (block[:, None] - torch.arange(layer.length, device=block.device)).abs()
            bin_of_key = torch.frexp(distance.double()).exponent.long().expand(weights.shape)
            mass = weights.new_zeros(*weights.shape[:3], len(self.bins)).scatter_add_(-1, bin_of_key, weights)
            self.distance += mass.double().sum((0, 2)).cpu()

            # Mass that candidates keep
            for number, reading in enumerate(candidates):
                if reading is not None:
                    mass = (weights * reading(block, scores)).sum(-1)
                    self.captured[:, number] += mass.double().sum((0, 2)).cpu()

    def mean(self) -> LayerDiagnosis:
        """The means over all queries that were added."""
        count = max(1, self.count)
        numbers = {name: total / count for name, total in self.sums.items()}
        return LayerDiagnosis(*self.names, numbers, self.distance / count, self.captured / count)


def sampled_rows(length: int, count: int, seed: int = 0) -> Tensor:
    """A stratified sample of positions, in ascending order: one from each of ``min(count, length)`` equal parts.

    They are not equally spaced, because then all of them could have the same offset in the blocks of a mechanism.
    """
    if count >= length:
        return torch.arange(length)
    edges = torch.arange(count + 1) * length // count
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return edges[:-1] + (drawn * (edges[1:] - edges[:-1])).long()


def distance_bins(furthest: int) -> list[tuple[int, int]]:
    """First and last distance of every bin: (0, 0), (1, 1), (2, 3), (4, 7) …. The last bin ends at ``furthest``."""
    bins = [(0, 0)]
    while bins[-1][1] < furthest:
        low = 1 << (len(bins) - 1)
        bins.append((low, min(2 * low - 1, furthest)))
    return bins
