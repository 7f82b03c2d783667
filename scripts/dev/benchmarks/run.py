"""Run a benchmark: for every length build the implementations, verify them, then time them in turn.

They take turns so that a drift of the machine's speed affects all of them alike.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hf_longattn.engines.cpu.onednn import check_bf16
from hf_longattn.errors import OptionError, nearest

from .attention import ATTENTION, Implementation, LeftOut, verify_attention
from .case import AttentionInputs, Case

if TYPE_CHECKING:
    from .report import BenchmarkResult

OURS = "longattn"
REWARM_SECONDS = 1.0
"""Maximum seconds of a pass that runs once more untimed before each timed one. Otherwise it would pay for the caches
and the memory that a heavier pass before it has taken."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds of one implementation at one length; ``rounds`` holds every repeat in order."""

    implementation: str
    length: int
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def implementations(kind: str) -> tuple[type[Any], Mapping[str, type[Any]], Callable[..., list[Any]]]:
    """The inputs, the implementations by name and the verification of ``attention``, or of whole models (``model``,
    ``train``)."""
    if kind == "attention":
        return AttentionInputs, ATTENTION, verify_attention
    from .encoders import ENCODERS, ModelInputs, verify_model  # attention alone needs no model classes

    return ModelInputs, ENCODERS, verify_model


def run_benchmark(
    kind: str,
    case: Case,
    lengths: Sequence[int],
    against: Sequence[str],
    *,
    repeats: int = 5,
    processor_time: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> BenchmarkResult:
    """Ours against others, on equal inputs. Nothing is timed where an output differs from the definition.

    Args:
        kind: ``attention``; ``model`` for whole encoders, or ``train`` for these with their backward pass.
        case: shapes, dtype, mechanism and options; its length is replaced by each of ``lengths``.
        against: names of implementations, of :data:`.attention.ATTENTION` or :data:`.encoders.ENCODERS`.
        repeats: timed rounds.
        processor_time: whether processor time is taken, for a machine that others use as well.
        log: called with progress lines.
    Raises:
        OptionError: for an unknown implementation, mechanism or option.
    """
    from .report import BenchmarkResult

    inputs_class, known, verify = implementations(kind)
    if unknown := next((name for name in against if name not in known or name == OURS), None):
        others = [name for name in known if name != OURS]
        raise OptionError(
            f"There is no implementation {unknown!r} here; choose from {', '.join(others)}.{nearest(unknown, others)}"
        )
    if not lengths or min(lengths) < 1 or repeats < 1:
        raise OptionError(
            "A benchmark needs at least one length and one repeat, all of them 1 or more; for example --lengths "
            "1024,4096."
        )
    if case.dtype == "bf16":
        check_bf16("--dtype fp32")
    result = BenchmarkResult(kind, case, list(lengths), clock="processor time" if processor_time else "time")
    for length in lengths:
        inputs = inputs_class(case.at(length=length))
        candidates: list[Implementation] = []
        for name in (OURS, *against):
            try:
                candidates.append(known[name](inputs))
            except LeftOut as reason:
                result.left_out.append({"implementation": name, "length": length, "reason": str(reason)})
                log(f"{length:>7} {name:<22} left out: {reason}")
        checks = verify(inputs, candidates)
        result.checks += checks
        for check in checks:
            verdict = "" if check.passed else "  NOT EQUAL"
            log(
                f"{length:>7} {check.implementation:<22} {check.what}: {check.error:.1e} (allowed "
                f"{check.tolerance:.0e}){verdict}"
            )
        if not result.equal:
            return result
        clock = time.process_time if processor_time else time.perf_counter
        timed = time_in_turn(candidates, length, backward=case.backward, repeats=repeats, clock=clock)
        result.timings += timed
        for timing in timed:
            line = f"{length:>7} {timing.implementation:<22} {timing.median:10.2f} ms"
            if timing.implementation != OURS:
                ratio = times_faster(timed[0], timing)
                faster = {
                    "implementation": timing.implementation,
                    "length": length,
                    "ours": OURS,
                    "times_faster": round(ratio, 3),
                }
                result.ratios.append(faster)
                line += f"   {OURS} is {ratio:.2f}× as fast"
            log(line)
        del inputs, candidates
    return result


def time_in_turn(
    candidates: Sequence[Implementation],
    length: int,
    *,
    backward: bool,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Warm every implementation up once, then time them :func:`in_turn`."""
    passes = {candidate.name: partial(candidate.run, backward) for candidate in candidates}
    again = set()
    for name, run in passes.items():
        start = time.perf_counter()
        run()
        again |= {name} if time.perf_counter() - start < REWARM_SECONDS else set()
    taken = in_turn(passes, repeats, clock=clock, again=again)
    return [Timing(name, length, tuple(values)) for name, values in taken.items()]


def in_turn(
    passes: Mapping[str, Callable[[], Any]],
    turns: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    device: str = "cpu",
    again: Collection[str] = (),
) -> dict[str, list[float]]:
    """Milliseconds of every pass by its name, which run A B C A B C …, each with the device synchronised.

    Args:
        clock: returns seconds of the wall, or of the processor, for a machine that others use as well.
        again: names of passes that run once more untimed before each timed one.
    """
    taken: dict[str, list[float]] = {name: [] for name in passes}
    gc.collect()
    gc.disable()
    try:
        for _ in range(turns):
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
    """How many times as fast ours is: the median over the rounds of the quotient within a round."""
    return statistics.median(theirs / mine for mine, theirs in zip(ours.rounds, other.rounds, strict=True))


def synchronise(device: str) -> None:
    """Wait until a GPU has computed all that was launched."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
