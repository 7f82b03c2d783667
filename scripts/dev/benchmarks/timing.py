"""Time several implementations in turn, so that a drift of the machine's speed affects all of them alike."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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
    clock: Callable[[], float] = time.perf_counter, warm: bool = True,
) -> list[Timing]:  # fmt: skip
    """Warm every implementation up once, then run A B C A B C …; a pass is timed with the device synchronised.

    Right before its timed pass an implementation runs once more untimed, if it takes less than :data:`REWARM_SECONDS`: otherwise it
    would pay for the caches and the memory that a heavier one before it has taken.

    ``clock`` returns seconds: of the wall, or of the processor, which says more on a machine that others use. Without ``warm`` every pass
    is timed: one that takes a minute needs no other before it, if the caller has called :meth:`Implementation.warm_up`.
    """
    rewarm = [False] * (0 if warm else len(candidates))
    for candidate in candidates if warm else ():
        start = time.perf_counter()
        candidate.run(backward)
        rewarm.append(time.perf_counter() - start < REWARM_SECONDS)
    rounds: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for candidate, again in zip(candidates, rewarm, strict=True):
                if again:
                    candidate.run(backward)
                _synchronise(device)
                start = clock()
                candidate.run(backward)
                _synchronise(device)
                rounds[candidate.name].append((clock() - start) * 1e3)
    finally:
        gc.enable()
    return [Timing(name, length, tuple(values)) for name, values in rounds.items()]


def processor_turns(
    passes: Mapping[str, Callable[[], Any]], seconds: float, turns: tuple[int, int], *, alternate: bool = False
) -> list[dict[str, float]]:
    """Milliseconds of processor time of every pass by its name, for every turn, after one that warms up.

    Args:
        seconds: processor time after which no further turn begins.
        turns: the fewest and the most.
        alternate: turn the order of the passes round in every other turn; otherwise each finds the caches as the one before left them.
    """
    taken: list[dict[str, float]] = []
    for run in passes.values():
        run()
    deadline = time.process_time() + seconds
    gc.collect()
    gc.disable()
    try:
        while len(taken) < turns[0] or (len(taken) < turns[1] and time.process_time() < deadline):
            names, turn = list(passes), dict[str, float]()
            for name in names[::-1] if alternate and len(taken) % 2 else names:
                started = time.process_time()
                passes[name]()
                turn[name] = (time.process_time() - started) * 1e3
            taken.append(turn)
    finally:
        gc.enable()
    return taken


def times_faster(ours: Timing, other: Timing) -> float:
    """How many times faster ours is: the median over the rounds of the quotient within a round."""
    return statistics.median(theirs / mine for mine, theirs in zip(ours.rounds, other.rounds, strict=True))


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
