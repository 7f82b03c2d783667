"""Timing several sides in turn, so that a drift of the machine's speed meets all of them."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Sequence

import torch

from .sides import Side


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds of one side at one length; ``rounds`` holds every repeat in order."""

    side: str
    length: int
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


REWARM_SECONDS = 1.0


def time_sides(sides: Sequence[Side], length: int, *, backward: bool, repeats: int, device: str = "cpu") -> list[Timing]:
    """Warm every side up once, then run A B C A B C …; a pass is timed with the device synchronised.

    Right before its timed pass a side runs once more untimed, if it takes less than :data:`REWARM_SECONDS`: otherwise it would pay
    for the caches and the memory that a heavier side before it has taken.
    """
    rewarm = []
    for side in sides:
        start = time.perf_counter()
        side.run(backward)
        rewarm.append(time.perf_counter() - start < REWARM_SECONDS)
    rounds: dict[str, list[float]] = {side.name: [] for side in sides}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for side, again in zip(sides, rewarm, strict=True):
                if again:
                    side.run(backward)
                _synchronise(device)
                start = time.perf_counter()
                side.run(backward)
                _synchronise(device)
                rounds[side.name].append((time.perf_counter() - start) * 1e3)
    finally:
        gc.enable()
    return [Timing(name, length, tuple(values)) for name, values in rounds.items()]


def times_faster(ours: Timing, other: Timing) -> float:
    """How many times faster ours is: the median over the rounds of the quotient within a round."""
    return statistics.median(theirs / mine for mine, theirs in zip(ours.rounds, other.rounds, strict=True))


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
