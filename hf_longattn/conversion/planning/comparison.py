"""What every mechanism would cost on a source at the same lengths, beside the one that was chosen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ...configuration import LongAttentionConfig
from ...errors import LongAttentionError
from ...mechanisms import Mechanism, list_mechanisms
from ..costs.counts import cost_at, layer_mechanisms
from ..costs.shape import ModelShape
from .plan import ConversionPlan

__all__ = ["LENGTHS", "MechanismCost", "compare_mechanisms", "matrix_speed"]

LENGTHS = tuple(1024 * 2**power for power in range(7))
"""1K to 64K tokens."""


@dataclass(frozen=True)
class MechanismCost:
    """What a model with one mechanism in every layer costs at the lengths of a comparison, for one sequence.

    mechanism: its name; the first row is the plan's own attention.
    flops: of the whole model.
    bytes: of the widest layer's activations and, where the model decodes, of its cache.
    refused: why it cannot be had without further options; empty when it can.
    """

    mechanism: str
    flops: tuple[int, ...] = ()
    bytes: tuple[int, ...] = ()
    refused: str = ""


def compare_mechanisms(plan: ConversionPlan, lengths: tuple[int, ...] = LENGTHS) -> list[MechanismCost]:
    """The plan's attention, then every mechanism that the model can take with its usual options; counted from shapes."""
    names = list_mechanisms(causal=plan.shape.causal)
    return [
        _cost("as planned", lambda: plan.attention, plan.shape, lengths),
        *(_cost(name, partial(LongAttentionConfig, name), plan.shape, lengths) for name in names),
    ]


def _cost(name: str, attention: Callable[[], LongAttentionConfig], shape: ModelShape, lengths: tuple[int, ...]) -> MechanismCost:
    try:
        chosen = attention()
        costs = [cost_at(length, shape, _without_values(chosen, shape, length)) for length in lengths]
    except LongAttentionError as error:
        return MechanismCost(name, refused=str(error))
    flops = tuple(cost.total_flops for cost in costs)
    return MechanismCost(name, flops, tuple(cost.activation_bytes + (cost.cache_bytes or 0) for cost in costs))


def _without_values(attention: LongAttentionConfig, shape: ModelShape, length: int) -> list[Mechanism]:
    """The mechanisms of a model for this length. Parameters of many depend on it, and can be larger than the model."""
    with torch.device("meta"):
        return layer_mechanisms(attention, shape, length)


def matrix_speed(size: int = 1024, rounds: int = 5) -> float:
    """Floating-point operations a second of this machine's matrix product in fp32, the best of some rounds: what no model exceeds."""
    a = torch.ones(size, size)
    a @ a
    best = float("inf")
    for _ in range(rounds):
        begun = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best
