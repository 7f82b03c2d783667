"""Run a benchmark: for every length build the implementations, verify them, then time them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hf_longattn.engines.cpu.onednn import check_bf16
from hf_longattn.errors import OptionError

from .case import Case
from .implementations import Implementation, LeftOut, build_implementation, build_inputs
from .report import BenchmarkResult
from .timing import time_in_turn, times_faster
from .verify import verify_attention

Log = Callable[[str], None]
OURS = "longattn"


def run_attention(case: Case, lengths: Sequence[int], against: Sequence[str], **settings: Any) -> BenchmarkResult:
    """Attention alone: our ``attend`` against others, on equal q, k, v.

    Args:
        case: shapes, dtype, mechanism and options; its length is replaced by each of ``lengths``.
        lengths: tokens.
        against: names of implementations (see :func:`.implementations.list_implementations`).
        settings: ``repeats`` (timed rounds, default 5), ``processor_time`` (in place of time, where the machine is shared), ``log``
            (called with progress lines).

    Raises:
        OptionError: for an unknown implementation, mechanism or option.
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
    verify: Callable[[Any, Sequence[Implementation]], list[Any]],
    *,
    repeats: int = 5,
    processor_time: bool = False,
    log: Log = lambda line: None,
) -> BenchmarkResult:
    if not lengths or min(lengths) < 1 or repeats < 1:
        raise OptionError("A benchmark needs at least one length and one repeat, all of them 1 or more; for example --lengths 1024,4096.")
    if case.device == "cpu" and case.dtype == "bf16":
        check_bf16("--dtype fp32")
    kind = "attention" if name == "attention" else "model"
    result = BenchmarkResult(name, case, list(lengths), clock="processor time" if processor_time else "time")
    for length in lengths:
        inputs = build_inputs(kind, case.at(length=length))
        candidates = _build(kind, inputs, against, length, result, log)
        checks = verify(inputs, candidates)
        result.checks += checks
        for check in checks:
            verdict = "" if check.passed else "  NOT EQUAL"
            log(f"{length:>7} {check.implementation:<22} {check.what}: {check.error:.1e} (allowed {check.tolerance:.0e}){verdict}")
        if not result.equal:
            return result
        clock = time.process_time if processor_time else time.perf_counter
        timed = time_in_turn(candidates, length, backward=case.backward, repeats=repeats, device=case.device, clock=clock)
        timings = {timing.implementation: timing for timing in timed}
        result.timings += timed
        for candidate in candidates:
            line = f"{length:>7} {candidate.name:<22} {timings[candidate.name].median:10.2f} ms"
            if candidate.name != OURS:
                ratio = times_faster(timings[OURS], timings[candidate.name])
                faster = round(ratio, 3)
                result.ratios.append({"implementation": candidate.name, "length": length, "ours": OURS, "times_faster": faster})
                line += f"   {OURS} is {ratio:.2f}× as fast"
            log(line)
        del inputs, candidates
    return result


def _build(kind: str, inputs: Any, against: Sequence[str], length: int, result: BenchmarkResult, log: Log) -> list[Implementation]:
    """Ours first, then the others."""
    candidates = [build_implementation(kind, OURS, inputs)]
    for name in against:
        try:
            candidates.append(build_implementation(kind, name, inputs))
        except LeftOut as reason:
            result.left_out.append({"implementation": name, "length": length, "reason": str(reason)})
            log(f"{length:>7} {name:<22} left out: {reason}")
    return candidates


def set_threads(threads: int | None) -> None:
    """Use this many threads inside operations; ``None`` keeps PyTorch's default."""
    if threads is not None:
        torch.set_num_threads(threads)
