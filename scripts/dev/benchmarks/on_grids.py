"""Mechanisms on grids of pictures and videos against SDPA over all cells: equal to the definition first, then times of one run, and peak
memory."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from hf_longattn.choice_text import read_choice
from hf_longattn.errors import LongAttentionError

from .attention.ours import Ours
from .attention.sdpa import Sdpa
from .case import AttentionInputs, Case
from .memory import exponent, measure_memory
from .report import machine, markdown_table
from .timing import Timing, time_in_turn, times_faster
from .verify import verify_attention

MECHANISMS = (
    "window2d:window=8", "window2d:window=14", "window2d:window=16", "window2d:window=14,shift=alternate", "local2d:radius=8",
    "neighborhood:kernel_size=17", "neighborhood:kernel_size=13", "neighborhood:kernel_size=33", "neighborhood:kernel_size=7,dilation=2",
    "axial", "segmented:block_size=256,integration=pooled,order=tiles:16x16",
)  # fmt: skip
VIDEO_MECHANISMS = (
    "window2d:window=4+7+7", "window2d:window=8+7+7", "window2d:window=8+14+14", "window2d:window=4+7+7,shift=alternate",
    "window2d:window=8+14+14,shift=alternate", "local2d:radius=2+3+3",
    "neighborhood:kernel_size=5+7+7", "neighborhood:kernel_size=6+12+12,stride=2+4+4", "axial",
    "segmented:block_size=196,integration=pooled,order=tiles:4x7x7",
)  # fmt: skip
"""On grids of time, height and width; the one with a stride has sliding tiles."""
VIDEO_GRIDS = ((8, 28, 28), (16, 28, 28))
"""16 and 32 frames of 448 pixels, in tubelets of 2 and patches of 16 (VideoMAE, V-JEPA 2)."""
CHECKED_GRIDS = {2: ((48, 48), (37, 41)), 3: ((8, 16, 16), (7, 15, 13))}
"""Grids on which results are compared with the definition before anything is timed, by their axes; the second has sides that no window
divides."""


def run_on_grids(
    mechanisms: Sequence[str], sides: Sequence[int | tuple[int, ...]], case: Case, *, repeats: int, memory: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Check and measure each mechanism (``local2d:radius=8``) on grids.

    Args:
        sides: cells along both axes of square grids, or along each axis of other ones.
        case: heads and their width; mechanism, options, length and grid are replaced.
        repeats: timed rounds; the median over them is stored.
        memory: measure the peak memory of a forward and backward pass too, in a process for each.
    Returns:
        The record that is stored: for each mechanism and side milliseconds of the processor and how many times as fast as SDPA it is,
        forward and with the backward pass, and MiB on top of the inputs with the exponent of the cells by which they grow.
    Raises:
        OptionError: an unknown mechanism or option.
        LongAttentionError: a result differs from the definition.
    """
    cases = {line: _case_of(line, case) for line in mechanisms}
    for line, of_mechanism in cases.items():
        for grid in CHECKED_GRIDS[len(sizes_of(sides[0]))]:
            _check(line, of_mechanism.on_grid(grid).at(backward=True))
        log(f"{line:<60} equals its definition")
    results: dict[str, dict[str, Any]] = {line: {"mechanism": line, "times": []} for line in ("sdpa", *mechanisms)}
    for side in sides:
        for backward in (False, True):
            for line, timing, faster in _timings(cases, case.on_grid(sizes_of(side)).at(backward=backward), repeats):
                entry = {"side": side, "backward": backward, "milliseconds": round(timing.median, 1), "times_faster": round(faster, 2)}
                results[line]["times"].append(entry)
                log(f"{name_of(side):<9} {'backward' if backward else 'forward':<8} {line:<60} {timing.median:10.1f} ms {faster:7.2f}×")
    for line in results if memory else ():
        of_line, name = (case, "sdpa") if line == "sdpa" else (cases[line], "longattn")
        peaks = [measure_memory("attention", name, of_line.on_grid(sizes_of(side)).at(backward=True)) for side in sides]
        growth = exponent(peaks)
        results[line] |= {"mebibytes": [round(peak.extra, 1) for peak in peaks], "exponent": None if growth is None else round(growth, 3)}
        squares = [side for side in sides if isinstance(side, int)]
        if squares and (divided := sides_of_whole_windows(of_line, squares)) is not None:
            results[line]["whole_windows"] = whole_window_memory(of_line, divided)
        log(f"{line:<60} {results[line]['mebibytes']} MiB, N^{results[line]['exponent']}")
    about = {key: value for key, value in dataclasses.asdict(case).items() if key in ("heads", "head_dim", "dtype", "batch", "seed")}
    return {"machine": machine(), "kind": "grid", "clock": "processor", "case": about, "sides": list(sides), "results": [*results.values()]}


def sizes_of(side: int | Sequence[int]) -> tuple[int, ...]:
    """The sizes of a grid: of a square one by its side."""
    return (side, side) if isinstance(side, int) else tuple(side)


def name_of(side: int | Sequence[int]) -> str:
    """A grid in a table, for example "64×64"."""
    return "×".join(map(str, sizes_of(side)))


def sides_of_whole_windows(case: Case, sides: Sequence[int]) -> list[int] | None:
    """The next smaller sides that the mechanism's windows divide; ``None`` where they divide all, or it has no windows without overlap."""
    windows = getattr(case.build().options, "window", None)
    if not isinstance(windows, tuple) or not any(side % window for side in sides for window in windows):
        return None
    return [side - side % math.lcm(*windows) for side in sides]


def whole_window_memory(case: Case, sides: Sequence[int]) -> dict[str, Any]:
    """Peak memory of a forward and backward pass on grids without partial windows, and the exponent with which it grows."""
    peaks = [measure_memory("attention", "longattn", case.on_grid((side, side)).at(backward=True)) for side in sides]
    growth = exponent(peaks)
    mebibytes = [round(peak.extra, 1) for peak in peaks]
    return {"sides": list(sides), "mebibytes": mebibytes, "exponent": None if growth is None else round(growth, 3)}


def _case_of(line: str, case: Case) -> Case:
    options = read_choice(line)
    return case.at(mechanism=options.pop("mechanism"), options=options)


def _inputs_of(case: Case, shared: AttentionInputs) -> AttentionInputs:
    """``shared`` with the mechanism of another case; windows that are shifted in every second layer are shifted here."""
    inputs = copy.copy(shared)
    inputs.case = case
    inputs.mechanism = case.build().eval()
    inputs.mechanism.layer = 1
    return inputs


def _check(line: str, case: Case) -> None:
    small = case.at(heads=2)
    inputs = _inputs_of(small, AttentionInputs(small))
    for check in verify_attention(inputs, [Ours(inputs)]):
        if not check.passed:
            raise LongAttentionError(
                f"{line} differs from its definition by {check.error:.1e} ({check.what}) on a grid of {math.prod(case.grid)} cells, so "
                "nothing was timed; run the tests of its engine."
            )


def _timings(cases: dict[str, Case], case: Case, repeats: int) -> list[tuple[str, Timing, float]]:
    """The processor's time of SDPA and of every mechanism, one after the other in each round, and how many times faster it is."""
    shared = AttentionInputs(case.at(mechanism="full", options={}))
    ours = [
        type("OnGrid", (Ours,), {"name": line})(_inputs_of(of_mechanism.on_grid(case.grid).at(backward=case.backward), shared))
        for line, of_mechanism in cases.items()
    ]
    timed = time_in_turn([Sdpa(shared), *ours], case.length, backward=case.backward, repeats=repeats, clock=time.process_time)
    return [(timing.implementation, timing, times_faster(timing, timed[0])) for timing in timed]


def grid_table(record: dict[str, Any]) -> str:
    """Mechanisms × grids and passes as times faster than SDPA, and peak memory."""
    sides = record["sides"]
    with_memory = any("mebibytes" in result for result in record["results"])
    header = ["times as fast as SDPA", *(f"{name_of(side)}, {name}" for side in sides for name in ("forward", "with backward"))]
    if with_memory:
        header += [*(f"MiB, {name_of(side)}" for side in sides), "exponent"]
    rows = []
    for result in record["results"]:
        times = {(name_of(entry["side"]), entry["backward"]): entry for entry in result["times"]}
        cells = [times[name_of(side), backward] for side in sides for backward in (False, True)]
        row = [f"`{result['mechanism']}`"]
        if result["mechanism"] == "sdpa":
            row += [f"{entry['milliseconds']:,.0f} ms" for entry in cells]
        else:
            row += [f"{entry['times_faster']:.1f}×" for entry in cells]
        if with_memory:
            growth = result["exponent"]
            row += [*(f"{size:,.0f}" for size in result["mebibytes"]), "–" if growth is None else f"{growth:.2f}"]
        rows.append(row)
    return markdown_table(header, rows) + "\n" + _about_partial_windows(record)


def _about_partial_windows(record: dict[str, Any]) -> str:
    """What the memory is where no window is partial, for the mechanisms that have partial ones in the table."""
    measured = {result["mechanism"]: result["whole_windows"] for result in record["results"] if "whole_windows" in result}
    if not measured:
        return ""
    lines = []
    for mechanism, entry in measured.items():
        pairs = zip(entry["sides"], entry["mebibytes"], strict=True)
        sizes = " and ".join(f"{size:,.0f} MiB on {side}×{side}" for side, size in pairs)
        of_cell = entry["mebibytes"][-1] * 1024 / entry["sides"][-1] ** 2
        lines.append(f"- `{mechanism}`: {sizes} ({of_cell:.1f} KiB a cell), exponent {entry['exponent']:.2f}")
    about = "Windows that do not divide a grid take less memory on it: copies of partial windows are freed before those of whole ones are "
    return f"\n{about}made. Where they divide it:\n\n" + "\n".join(lines) + "\n"
