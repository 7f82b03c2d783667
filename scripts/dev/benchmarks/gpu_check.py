"""Check and time every mechanism on a GPU within a few minutes: ``python -m scripts.dev.benchmarks.gpu_check`` from a checkout.

Every result is a line of ``OUTPUT.jsonl`` as soon as it is known, the most valuable cases come first, and ``OUTPUT.json`` holds them all in
the end. The cases run in worker processes: several at once where they are only checked, one where they are timed. A worker that ends or
hangs costs its case alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from subprocess import PIPE
from typing import IO, Annotated, Any

import torch
import typer

from hf_longattn.engines.cuda import fla
from hf_longattn.mechanisms import mechanism_info
from scripts.dev import ROOT

from .device_cases import DeviceCase, preparations, stages
from .report import machine, markdown_table, store_study

OUTPUT = {"cuda": Path("scripts/dev/results/gpu_check.json"), "cpu": Path("runs/gpu_check.json")}
CASE_SECONDS, COMPILED_SECONDS = 90.0, 240.0
"""A worker that takes longer for a case, or for one that compiles a model or tries many kernels, is ended."""
TUNED_ENGINE = "linear"
"""The engine of flash-linear-attention, which at first compiles some hundred variants of its kernel to find the fastest."""
QUADRATIC = 1.5
"""Memory that grows faster than this power of the length is taken for N×N."""
BASELINES = ("sdpa flash", "sdpa")
"""Full attention by the kernel to which the table compares: on a GPU, and on a CPU."""
GROUPS = {
    "windows and global tokens": ("block_sparse",),
    "patterns of tiles": ("gathered",),
    "images": ("grid_windows",),
    "chosen keys": ("block_selected", "selected"),
    "rounds of hashing": ("bucketed",),
    "states (linear, memories)": ("linear", "recurrent"),
    "full and low-rank": ("dense", "low_rank"),
}
"""The checks of a table's line, by the engines of their mechanisms."""
TASK_GROUPS = {"decode": "decoding", "compiled": "models in torch.compile"}
MOST_WORKERS = {"cuda": 6, "cpu": 1}
SHARES = (0.5, 0.8, 0.9, 1.0)
"""The part of the budget after which no case of a stage is begun until the others had theirs, so that a machine on which kernels take long
to compile times the most valuable cases, too."""
PREPARING = 0.4
"""The part of a stage's time for compiling, by several workers, the kernels that it then times."""
SPOILED = "spoiled"
"""Key of a result after which its process can run nothing."""
WORKER = "--worker"
COMMAND = [sys.executable, "-m", "scripts.dev.benchmarks.gpu_check", WORKER]


def main(
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the script itself.")] = "cuda",
    quick: Annotated[bool, typer.Option("--quick", help="Short inputs only, a few minutes on a CPU.")] = False,
    budget: Annotated[float, typer.Option(min=1, help="Seconds after which no case is begun and running ones are ended.")] = 480.0,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Processes that check at once; 0: one for two cores, up to 6.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what passed in the results that are there, and run the rest.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Where the results go: scripts/dev/results/gpu_check.json, or runs/gpu_check.json from a CPU.")
    ] = None,
) -> None:
    """Forward and backward in bf16, fp32 and fp16 against float64, then timings against PyTorch's own kernels."""
    kind = device.partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        typer.echo("There is no CUDA device here, so nothing was checked; `--device cpu --quick` tries the script itself.")
        return
    output = (output or OUTPUT[kind]).with_suffix(".json")
    output.parent.mkdir(parents=True, exist_ok=True)
    start, planned = time.monotonic(), stages(quick)
    earlier = json.loads(output.read_text("utf-8"))["results"] if resume and output.exists() else []
    kept = {result["case"]: result for result in earlier if result["passed"]}
    with open(output.with_suffix(".jsonl"), "w", encoding="utf-8") as lines, open(output.with_suffix(".log"), "w", encoding="utf-8") as log:
        results = Results(lines)
        several = workers or workers_for(kind, len(os.sched_getaffinity(0)))
        for result in kept.values():
            results.add(result)
        waiting = [(alone, [case for case in cases if str(case) not in kept]) for alone, cases in planned]
        for shares in (SHARES, (1.0,) * len(planned)):
            left = []
            for (alone, cases), share in zip(waiting, shares, strict=False):
                end = start + share * budget
                stage = partial(run_stage, start=partial(Worker, device, log), end=end, deadline=start + budget)
                if alone and kind == "cuda":  # whose kernels would otherwise be compiled one after the other
                    now = time.monotonic()
                    stage(preparations(cases), several, add=lambda _: None, end=now + PREPARING * (end - now))
                left.append((alone, stage(cases, 1 if alone else several, add=results.add)))
            waiting = left
    record = results.record(sum(len(cases) for _, cases in planned))
    store_study(output, record)
    typer.echo(f"\n{markdown(record)}\n")
    for line in summary(record):
        typer.echo(line)
    typer.echo(f"stored in {output}")
    if not record["results"] or any(not result["passed"] for result in record["results"]) or record["quadratic"]:
        raise typer.Exit(1)


def machine_here() -> dict[str, Any]:
    """The machine, and what a run depends on besides."""
    return {**machine(), "cores": len(os.sched_getaffinity(0)), "fla": fla.installed()}


class Results:
    """What was found so far, written line by line."""

    def __init__(self, lines: IO[str]) -> None:
        self.lines, self.lock = lines, threading.Lock()
        self.found: list[dict[str, Any]] = []
        self.write({"machine": machine_here()})

    def add(self, result: dict[str, Any]) -> None:
        with self.lock:
            self.found.append(result)
            self.write(result)
            typer.echo(shown(result))

    def write(self, line: dict[str, Any]) -> None:
        self.lines.write(json.dumps(line) + "\n")
        self.lines.flush()

    def record(self, planned: int) -> dict[str, Any]:
        """Everything, with what follows from several results."""
        return {"machine": machine_here(), "planned": planned, "results": self.found, "quadratic": list(quadratic(self.found))}


def shown(result: dict[str, Any]) -> str:
    """One line about a result."""
    errors = [f"{name.partition('_')[0]} {result[name]:.1e}" for name in ("output_error", "gradient_error") if name in result]
    times = [f"{name} {t['ms']:.2f} ms" for name, t in result.get("timings", {}).items() if "ms" in t]
    text = ", ".join([*errors, *times, *result.get("paths", ())])
    return f"{'' if result['passed'] else 'FAILED '}{result['case']}: {text}" + (f"; {result['failure']}" if "failure" in result else "")


def quadratic(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Timed cases of ours whose memory grows like the number of pairs."""
    peaks: dict[str, dict[int, float]] = {}
    for result in results:
        peak = result.get("timings", {}).get("longattn", {}).get("mib")
        if peak:
            peaks.setdefault(result["case"].replace(f" {result['length']}", " N"), {})[result["length"]] = peak
    for case, by_length in peaks.items():
        for (short, less), (long, more) in itertools.pairwise(sorted(by_length.items())):
            if (power := math.log(more / less) / math.log(long / short)) > QUADRATIC:
                yield f"{case}: {less:.0f} MiB at {short} tokens, {more:.0f} at {long} (N^{power:.1f})"


def summary(record: dict[str, Any]) -> Iterator[str]:
    """What has no kernel here, and how many cases were reached."""
    results = record["results"]
    reasons: dict[str, list[str]] = {}
    for result in results:
        for reason in result.get("no_flex", ()):
            reasons.setdefault(reason, []).append(result["case"])
    for reason, cases in reasons.items():
        yield f"without a kernel, {len(cases)} cases ({reason}), such as: {cases[0]}"
    for line in record["quadratic"]:
        yield f"FAILED memory grows too fast: {line}"
    passed = sum(result["passed"] for result in results)
    yield f"{passed} of {len(results)} cases passed; {record['planned'] - len(results)} were not reached within the budget"


def markdown(record: dict[str, Any]) -> str:
    """Correctness, a line for each group, with every failure in full; then timings and decoding in tables of their own."""
    results = record["results"]
    failures = "\n".join(f"- {shown(result)}" for result in results if not result["passed"])
    parts = [f"{sum(result['passed'] for result in results)} of {len(results)} cases passed.", failures]
    for caption, table in (
        ("Against float64: the largest errors of outputs / of gradients.", correctness_table),
        (
            "Milliseconds, and how many times those of full attention by SDPA's flash kernel that is: below ×1 is faster.",
            timing_table,
        ),
        ("Decoding, milliseconds for a token.", decoding_table),
    ):
        header, rows = table(results)
        if rows:
            parts += [caption, markdown_table(header, rows)]
    return "\n\n".join(part for part in parts if part)


def group_of(result: dict[str, Any]) -> str:
    """The line of the table of correctness that counts a case."""
    if result["task"] != "check":
        return TASK_GROUPS.get(result["task"], "timed")
    engine = mechanism_info(result["mechanism"]).engine
    return next((words for words, engines in GROUPS.items() if engine in engines), engine)


def correctness_table(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """For each group how many cases passed, and the largest errors in each dtype."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(group_of(result), []).append(result)
    dtypes = [dtype for dtype in ("bf16", "fp16", "fp32") if any(r["dtype"] == dtype and "output_error" in r for r in results)]

    def worst(found: Sequence[dict[str, Any]], dtype: str) -> str:
        of_dtype = [result for result in found if result["dtype"] == dtype]
        largest = [max((r[name] for r in of_dtype if name in r), default=None) for name in ("output_error", "gradient_error")]
        return " / ".join(f"{error:.0e}" for error in largest if error is not None) or "–"

    rows = [
        [group, f"{sum(r['passed'] for r in found)} of {len(found)}", *(worst(found, dtype) for dtype in dtypes)]
        for group, found in groups.items()
    ]
    return ["checked", "passed", *dtypes], rows


def timing_table(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row for each mechanism in a setting, and length; a column for each way to compute it, and the paths that ran."""
    timed = [result for result in results if result["task"] == "time" and "timings" in result]
    cases: dict[str, list[dict[str, Any]]] = {}
    for result in timed:
        cases.setdefault(f"`{result['mechanism']}`" + f", {result['setting']}" * bool(result["setting"]), []).append(result)
    measured = {name for result in timed for name, timing in result["timings"].items() if "ms" in timing}
    ways = ["longattn", *sorted(measured - {"longattn", *BASELINES}), *(name for name in BASELINES if name in measured)]

    def cell(result: dict[str, Any], way: str) -> str:
        times = {name: timing["ms"] for name, timing in result["timings"].items() if "ms" in timing}
        full = next((times[name] for name in BASELINES if name in times), None)
        if way not in times:
            return "–"
        return f"{times[way]:.2f}" + (f" (×{times[way] / full:.2f})" if full and way not in BASELINES else "")

    rows = [
        [case, f"{result['length']:,}", *(cell(result, way) for way in ways), ", ".join(result["paths"])]
        for case, found in cases.items()
        for result in sorted(found, key=lambda result: result["length"])
    ]
    return ["ms", "tokens", *(way.removeprefix("longattn ") for way in ways), "path"], rows


def decoding_table(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Mechanisms × caches."""
    rows = [
        [f"`{r['mechanism']}`", r["cache"], f"{r['length']:,}", f"{found['ms']:.2f}", f"{found['cache_mib']:.1f}"]
        for r in results
        if r["task"] == "decode" and (found := r.get("timings", {}).get("longattn"))
    ]
    return ["mechanism", "cache", "tokens before", "ms", "MiB of the cache"], rows


def failed(case: DeviceCase, failure: str) -> dict[str, Any]:
    """The result of a case that found nothing."""
    return case.record() | {"passed": False, "failure": failure}


def workers_for(kind: str, cores: int) -> int:
    """Processes that check at once: each has a core for its compiler and one for what PyTorch computes meanwhile."""
    return max(1, min(MOST_WORKERS[kind], cores // 2))


class Worker:
    """A process that runs one case after another; what it prints besides goes into ``log``."""

    def __init__(self, device: str, log: IO[str]) -> None:
        environment = {"TORCHINDUCTOR_COMPILE_THREADS": "1", **os.environ}  # a graph has one kernel or two, and workers are many
        self.process = subprocess.Popen([*COMMAND, device], cwd=ROOT, env=environment, stdin=PIPE, stdout=PIPE, stderr=log, text=True)

    def run(self, case: DeviceCase, seconds: float) -> dict[str, Any]:
        """The result of a case, or that the process ended, or was ended after ``seconds``."""
        timer, begun = threading.Timer(seconds, self.process.kill), time.monotonic()
        timer.start()
        try:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps(dataclasses.asdict(case)) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if line:
            return json.loads(line)
        code, took = self.process.wait(), time.monotonic() - begun
        failure = f"it was ended after {took:.0f} seconds" if took >= seconds else f"its process ended with exit code {code}"
        return failed(case, failure)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def run_stage(
    cases: Sequence[DeviceCase], workers: int, start: Callable[[], Worker], add: Callable[[dict[str, Any]], None], end: float,
    deadline: float,
) -> list[DeviceCase]:  # fmt: skip
    """Run the cases in their order by so many workers, and return those that were not begun by the ``end``; at the deadline, running ones
    are ended."""
    waiting: SimpleQueue[DeviceCase] = SimpleQueue()
    for case in cases:
        waiting.put(case)

    def run() -> None:
        worker = None
        try:
            while time.monotonic() < end and not waiting.empty():
                case, left = waiting.get_nowait(), deadline - time.monotonic()
                if worker is not None and worker.ended:
                    worker.close()
                    worker = None
                worker = worker or start()
                longer = case.task == "compiled" or mechanism_info(case.mechanism).engine == TUNED_ENGINE
                result = worker.run(case, min(COMPILED_SECONDS if longer else CASE_SECONDS, left))
                if result.pop(SPOILED, False):  # the process is about to end: the next case is another's
                    worker.close()
                    worker = None
                if result["passed"] or time.monotonic() < deadline:  # what the deadline ended says nothing
                    add(result)
        except Empty:  # another worker took the last
            return
        finally:
            if worker is not None:
                worker.close()

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(run) for _ in range(min(workers, len(cases)))]:
            done.result()
    return [waiting.get_nowait() for _ in range(waiting.qsize())]


def work(device: str) -> None:
    """Run the cases that come as lines of JSON, and write a line with each result; after an error that spoils the device, end."""
    from .device_check import run_case

    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        case, spoiled = DeviceCase(**json.loads(line)), None
        try:
            result = run_case(case, device)
        except torch.AcceleratorError as error:  # an illegal access: nothing runs in this process any more
            spoiled = error
            result = failed(case, f"AcceleratorError: {' '.join(str(error).split())[:400]}") | {SPOILED: True}
        answers.write(json.dumps(result) + "\n")
        answers.flush()
        if spoiled is not None:
            raise spoiled


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        work(sys.argv[2])
    else:
        typer.run(main)
