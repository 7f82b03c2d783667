"""T5's relative positions (Raffel et al. 2020, section 2.1): a learned number for each head and bucket of distances.

    term(h, i, j) = table[bucket(i - j), h]

Half of the buckets hold one distance each; the others grow logarithmically up to ``max_distance``, and the last one holds everything
beyond. Bidirectional layers use half of all buckets for keys behind the query and half for keys ahead of it. Here every layer has a table
of its own; T5 shares the first layer's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ...errors import OptionError
from .base import DistanceOnly


def buckets(distance: Tensor, causal: bool, num_buckets: int, max_distance: int) -> Tensor:
    """The bucket of every ``distance`` = query - key, of the same shape, int64."""
    first = torch.zeros_like(distance)
    if causal:
        distance = distance.clamp(min=0)
    else:
        num_buckets //= 2
        first = (distance < 0).long() * num_buckets
        distance = distance.abs()
    single = num_buckets // 2
    # in float32, whose rounding decides where a bucket ends in T5's own models
    share = torch.log(distance.clamp(min=1).float() / single) / math.log(max_distance / single)
    coarse = (single + (share * (num_buckets - single)).long()).clamp(max=num_buckets - 1)
    return first + torch.where(distance < single, distance, coarse)


class T5Buckets(DistanceOnly):
    """Adds a learned number for each head and bucket of distances."""

    name = "t5_buckets"
    summary = "a learned number for each head and bucket of distances, the buckets growing logarithmically"
    paper = "Raffel et al. 2020, T5, §2.1"
    settings = MappingProxyType({
        "num_buckets": (32, "how many groups of distances are told apart"),
        "max_distance": (128, "distance in tokens from which on all fall into one bucket"),
    })  # fmt: skip

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, settings: Mapping[str, int]) -> None:
        super().__init__(num_heads, head_dim, hidden_size, settings)
        self.table = nn.Parameter(torch.zeros(self.values["num_buckets"], num_heads))

    @classmethod
    def check(cls, settings: Mapping[str, int]) -> None:
        super().check(settings)
        many, furthest = settings["num_buckets"], settings["max_distance"]
        if many % 4 or furthest <= many // 2:
            raise OptionError(
                f"Relative positions 't5_buckets' have num_buckets={many} and max_distance={furthest}, but need a multiple of 4 and "
                "a distance above half the buckets; for example relative='t5_buckets:num_buckets=32,max_distance=128'."
            )

    def bias(self, distance: Tensor, causal: bool) -> Tensor:
        at = buckets(distance, causal, self.values["num_buckets"], self.values["max_distance"])
        return self.table.to(torch.promote_types(self.table.dtype, torch.float32))[at].movedim(-1, 0)
