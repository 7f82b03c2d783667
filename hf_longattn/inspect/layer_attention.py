"""The softmax of one layer for some queries at a time, and the measurements on it.

With the scores s_ij of the keys that query i sees and p_ij = softmax_j(s_ij), the numbers of a head are means over
queries:

    effective_tokens   exp(-Σ_j p_ij log p_ij), the perplexity: number of tokens with equal weights that have the same
                       entropy
    largest_weight     max_j p_ij
    first_tokens       Σ_{j < 4} p_ij: the attention sink (Xiao et al. 2023, StreamingLLM, section 3.1)
    distance[b]        Σ_{j: d_ij in bin b} p_ij, for the bins 0, 1, 2-3, 4-7, 8-15, …, where d_ij is |i-j|
    captured[c]        Σ_j min(p_ij, w_ij), where w_ij are the weights of candidate c: 1 minus the total variation
                       distance of p and w. If c is a softmax over some of the keys, this equals Σ_j p_ij over the keys
                       that c keeps.

Scores are computed in fp32 (fp64 for fp64 inputs), for so few queries at a time that memory is linear in N.
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
"""Maximum number of scores in memory at a time, over all heads."""
MEANS = ("effective_tokens", "largest_weight", "first_tokens")
"""The numbers of a head, in the order of tables."""


@dataclass(frozen=True)
class LayerAttention:
    """Queries and keys of a layer's attention call, for one sequence.

    q, k: ``(1, H, N, D)``, ``(1, H_kv, N, D)``, after norms and rotations.
    call: causality, padding, the scale, and the terms and caps that the model applies to its scores.
    relative: relative positions of the layer's mechanism.
    within: the keys over which the reference softmax runs, for example a sliding window of the base; ``None``: all
        keys.
    name, mechanism: names of the attention module and of its mechanism.
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
        return self.k.shape[2]

    @property
    def heads(self) -> int:
        return self.q.shape[1]

    def scores(self, rows: Tensor) -> Tensor:
        """The scores ``(1, H, n, N)`` of the queries at ``rows (n,)``; -inf for keys that a query does not see."""
        q = self.q[:, :, rows]
        scale = self.call.scale_for(self.q.shape[-1])
        scores = products(q, repeat_heads(self.k, self.heads)) * scale
        b, h, _, keys = grid_of(q, self.k)
        if self.relative is not None:
            k = at_least_fp32(self.k)
            term = self.relative.term(at_least_fp32(q), k, rows[None], keys.view(1, -1), self.call.causal, scale)
            scores = scores + term.to(scores.dtype)
        if self.call.score_mod is not None:
            scores = self.call.score_mod(scores, b, h, rows.view(1, 1, -1, 1), keys)
        if self.call.causal:
            scores = scores.masked_fill(keys > rows[:, None], float("-inf"))
        if self.call.key_mask is not None:
            scores = scores.masked_fill(~self.call.key_mask[:, None, None, :], float("-inf"))
        if self.within is not None:
            scores = scores.masked_fill(~self.within(rows, scores), float("-inf"))
        return scores

    def blocks(self, rows: Tensor) -> Iterator[Tensor]:
        """Split the query indices ``rows`` so that each part has at most :data:`SCORES_IN_MEMORY` scores. Padding is
        left out."""
        rows = rows.to(self.k.device)
        if self.call.key_mask is not None:
            rows = rows[self.call.key_mask[0, rows]]
        yield from rows.split(max(1, SCORES_IN_MEMORY // (self.heads * self.length)))


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer at one length; every tensor is float64, with the heads first.

    name: name of the attention module.
    mechanism: name of the mechanism that runs in the layer.
    numbers: :data:`MEANS` by name, ``(H,)``.
    distance: mass in each bin of distances, ``(H, bins)``.
    captured: mass that each candidate keeps, ``(H, candidates)``; nan for a candidate that is not applicable.
    """

    name: str
    mechanism: str
    numbers: Mapping[str, Tensor]
    distance: Tensor
    captured: Tensor


class RowSums:
    """Sums of one layer's numbers over queries. ``mean`` divides them by the number of queries.

    names: names of the layer's attention module and mechanism.
    """

    def __init__(self, layer: LayerAttention, candidates: int) -> None:
        self.names = (layer.name, layer.mechanism)
        self.bins = distance_bins(layer.length - 1)
        self.count = 0
        self.sums = {name: torch.zeros(layer.heads, dtype=torch.float64) for name in MEANS}
        self.distance = torch.zeros(layer.heads, len(self.bins), dtype=torch.float64)
        self.captured = torch.zeros(layer.heads, candidates, dtype=torch.float64)

    def add(self, layer: LayerAttention, rows: Tensor, candidates: Sequence[AttendedKeys | None]) -> None:
        """Add the queries at ``rows``. For a candidate that is ``None``, the sum stays 0."""
        for block in layer.blocks(rows):
            scores = layer.scores(block)
            seen = ~hidden_pairs(scores)
            sighted = seen.any(-1).all(1).all(0)
            if not bool(sighted.all()):  # queries that see no key in some head are left out
                block = block[sighted]
                scores = scores[:, :, sighted]
                seen = seen[:, :, sighted]
            weights = scores.softmax(-1)
            self.count += len(block)
            entropy = scores.logsumexp(-1) - (weights * scores.masked_fill(~seen, 0.0)).sum(-1)
            for name, values in zip(
                MEANS, (entropy.exp(), weights.amax(-1), weights[..., :SINK].sum(-1)), strict=True
            ):
                self.sums[name] += values.double().sum((0, 2)).cpu()
            # the bin is the number of binary digits of the distance, exact below 2⁵²
            distance = (block[:, None] - torch.arange(layer.length, device=block.device)).abs()
            of_bin = torch.frexp(distance.double()).exponent.long()
            mass = weights.new_zeros(*weights.shape[:3], len(self.bins)).scatter_add_(
                -1, of_bin.expand(weights.shape), weights
            )
            self.distance += mass.double().sum((0, 2)).cpu()
            for number, reading in enumerate(candidates):
                if reading is not None:
                    mass = (weights * reading(block, scores)).sum(-1)
                    self.captured[:, number] += mass.double().sum((0, 2)).cpu()

    def mean(self) -> LayerDiagnosis:
        count = max(1, self.count)
        numbers = {name: total / count for name, total in self.sums.items()}
        return LayerDiagnosis(*self.names, numbers, self.distance / count, self.captured / count)


def sampled_rows(length: int, count: int, seed: int = 0) -> Tensor:
    """Stratified sample of positions: ``min(count, length)`` equal parts of the text, one position from each, in
    ascending order.

    Equally spaced positions could always have the same offset in a mechanism's blocks or strides.
    """
    if count >= length:
        return torch.arange(length)
    edges = torch.arange(count + 1) * length // count
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return edges[:-1] + (drawn * (edges[1:] - edges[:-1])).long()


def distance_bins(furthest: int) -> list[tuple[int, int]]:
    """First and last distance of every bin: (0, 0), (1, 1), (2, 3), (4, 7) …; the last one ends at ``furthest``."""
    bins = [(0, 0)]
    while bins[-1][1] < furthest:
        low = 1 << (len(bins) - 1)
        bins.append((low, min(2 * low - 1, furthest)))
    return bins
