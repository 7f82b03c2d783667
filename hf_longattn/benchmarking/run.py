"""The course of a benchmark: for every length build the sides, check them, then time them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import OptionError
from .case import Case
from .inputs import build_inputs
from .memory import exponent, measure_memory
from .report import BenchmarkResult
from .sides import Side, SideLeftOut, build_side
from .timing import time_sides, times_faster
from .verify import verify_attention

Log = Callable[[str], None]


def run_attention(case: Case, lengths: Sequence[int], against: Sequence[str], **settings: Any) -> BenchmarkResult:
    """Attention alone: our ``attend`` against others, on equal q, k, v (or equal hidden states and projections).

    Args:
        case: shapes, dtype, mechanism and options; its length is replaced by each of ``lengths``.
        lengths: tokens.
        against: names of sides (see :func:`hf_longattn.benchmarking.list_sides`).
        settings: ``repeats`` (timed rounds, default 5), ``memory`` (measure peak memory too), ``log`` (called with progress lines).

    Raises:
        OptionError: for an unknown side, mechanism or option.
    """
    return _run("attention", case, lengths, against, verify_attention, **settings)


def run_model(case: Case, lengths: Sequence[int], against: Sequence[str], **settings: Any) -> BenchmarkResult:
    """Whole encoders with equal random weights: LongBert against BERT and others; settings as in :func:`run_attention`."""
    from .models.verify import verify_model

    return _run("train" if case.backward else "model", case, lengths, against, verify_model, **settings)


def _run(
    name: str,
    case: Case,
    lengths: Sequence[int],
    against: Sequence[str],
    verify: Callable[[Any, Sequence[Side]], list[Any]],
    *,
    repeats: int = 5,
    memory: bool = False,
    log: Log = lambda line: None,
) -> BenchmarkResult:
    if not lengths or min(lengths) < 1 or repeats < 1:
        raise OptionError("A benchmark needs at least one length and one repeat, all of them 1 or more; for example --lengths 1024,4096.")
    kind = "attention" if name == "attention" else "model"
    result = BenchmarkResult(name, case, list(lengths))
    for length in lengths:
        inputs = build_inputs(kind, case.at(length=length))
        sides = _sides(kind, inputs, against, length, result, log)
        checks = verify(inputs, sides)
        result.checks += checks
        for check in checks:
            verdict = "" if check.passed else "  NOT EQUAL"
            log(f"{length:>7} {check.side:<22} {check.what}: {check.error:.1e} (allowed {check.tolerance:.0e}){verdict}")
        if not result.equal:
            return result
        timings = {t.side: t for t in time_sides(sides, length, backward=case.backward, repeats=repeats, device=case.device)}
        result.timings += timings.values()
        for side in sides:
            line = f"{length:>7} {side.name:<22} {timings[side.name].median:10.2f} ms"
            if side.name != side.opponent and not side.name.startswith("longattn"):
                ratio = times_faster(timings[side.opponent], timings[side.name])
                result.ratios.append({"side": side.name, "length": length, "ours": side.opponent, "times_faster": round(ratio, 3)})
                line += f"   {side.opponent} is {ratio:.2f}× as fast"
            log(line)
        del inputs, sides
    if memory:
        _measure_memory(kind, result, log)
    return result


def _sides(kind: str, inputs: Any, against: Sequence[str], length: int, result: BenchmarkResult, log: Log) -> list[Side]:
    """Ours first, then the others, then those of ours that the others are compared with."""
    sides = [build_side(kind, "longattn", inputs)]
    for name in against:
        try:
            sides.append(build_side(kind, name, inputs))
        except SideLeftOut as reason:
            result.left_out.append({"side": name, "length": length, "reason": str(reason)})
            log(f"{length:>7} {name:<22} left out: {reason}")
    opponents = {side.opponent for side in sides} - {side.name for side in sides}
    return sides + [build_side(kind, name, inputs) for name in sorted(opponents)]


def _measure_memory(kind: str, result: BenchmarkResult, log: Log) -> None:
    for side in dict.fromkeys(timing.side for timing in result.timings):
        done = [timing.length for timing in result.timings if timing.side == side]
        measured = []
        for length in done:
            measured.append(measure_memory(kind, side, result.case.at(length=length)))
            log(f"{length:>7} {side:<22} {measured[-1].extra:10.1f} MiB on top of the inputs")
        result.memory += measured
        if (growth := exponent(measured)) is not None:
            result.exponents[side] = round(growth, 3)
            log(f"        {side:<22} memory grows as N^{growth:.2f}")


def set_threads(threads: int | None) -> None:
    """Use this many threads inside operations; ``None`` leaves PyTorch's own choice."""
    if threads is not None:
        torch.set_num_threads(threads)
