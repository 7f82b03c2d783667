"""Time several implementations in turn, so that a drift of the machine's speed affects all of them alike."""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from .implementations import Implementation


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds of one implementation at one length; ``rounds`` holds every repeat in order."""

    implementation: str
    length: int
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


REWARM_SECONDS = 1.0


def time_in_turn(
    candidates: Sequence[Implementation], length: int, *, backward: bool, repeats: int, device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:  # fmt: skip
    """Warm every implementation up once, then time them :func:`in_turn`.

    Right before its timed pass an implementation runs once more untimed, if it takes less than :data:`REWARM_SECONDS`: otherwise it
    would pay for the caches and the memory that a heavier one before it has taken.
    """
    passes = {candidate.name: partial(candidate.run, backward) for candidate in candidates}
    again = set()
    for name, run in passes.items():
        start = time.perf_counter()
        run()
        again |= {name} if time.perf_counter() - start < REWARM_SECONDS else set()
    taken = in_turn(passes, (repeats, repeats), clock=clock, device=device, again=again)
    return [Timing(name, length, tuple(values)) for name, values in taken.items()]


def in_turn(
    passes: Mapping[str, Callable[[], Any]], turns: tuple[int, int], *, clock: Callable[[], float] = time.perf_counter,
    seconds: float = math.inf, device: str = "cpu", again: Collection[str] = (),
) -> dict[str, list[float]]:  # fmt: skip
    """Milliseconds of every pass by its name, which run A B C A B C …, each with the device synchronised.

    Args:
        turns: the fewest and the most.
        clock: returns seconds: of the wall, or of the processor, which says more on a machine that others use.
        seconds: of the clock, after which no further turn begins.
        again: names of passes that run once more untimed before each timed one.
    """
    taken: dict[str, list[float]] = {name: [] for name in passes}
    deadline = clock() + seconds
    gc.collect()
    gc.disable()
    try:
        for turn in range(turns[1]):
            if turn >= turns[0] and clock() >= deadline:
                break
            for name, run in passes.items():
                if name in again:
                    run()
                synchronise(device)
                start = clock()
                run()
                synchronise(device)
                taken[name].append((clock() - start) * 1e3)
    finally:
        gc.enable()
    return taken


def times_faster(ours: Timing, other: Timing) -> float:
    """How many times faster ours is: the median over the rounds of the quotient within a round."""
    return statistics.median(theirs / mine for mine, theirs in zip(ours.rounds, other.rounds, strict=True))


def synchronise(device: str) -> None:
    """Wait for what a GPU still computes."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
