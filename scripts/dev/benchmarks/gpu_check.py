"""Check and time every mechanism on a GPU within a few minutes: ``python -m scripts.dev.benchmarks.gpu_check`` from a
checkout.

The most valuable cases come first, and every result is in ``OUTPUT.json`` as soon as it is known, with the commit of
the code. The cases run in worker processes: several at once where they are only checked, one where they are timed. A
worker that ends or hangs costs its case alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from subprocess import PIPE
from typing import IO, Annotated, Any

import torch
import typer

from hf_longattn.mechanisms import mechanism_info
from scripts.dev import ROOT

from .device_cases import DeviceCase, preparations, stages
from .report import machine, markdown_table, store_study, stored_study

OUTPUT = {"cuda": Path("scripts/dev/results/gpu_check.json"), "cpu": Path("runs/gpu_check.json")}
CASE_SECONDS, COMPILED_SECONDS = 90.0, 240.0
"""A worker that takes longer for a case, or for one that compiles a model or tries many kernels, is ended."""
BASELINES = ("sdpa flash", "sdpa")
"""Full attention by the kernel to which the table compares: on a GPU, and on a CPU."""
TASK_GROUPS = {"decode": "decoding", "compiled": "models in torch.compile", "model": "training steps", "time": "timed"}
MOST_WORKERS = {"cuda": 8, "cpu": 1}
SHARES = (0.3, 0.65, 0.85, 0.95, 1.0)
"""The part of the budget after which no case of a stage is begun until the others had theirs, so that a machine on
which kernels take long to compile times the most valuable cases, too."""
PREPARING = 0.4
"""The part of a stage's time for compiling, by several workers, the kernels that it then times."""
SPOILED = "spoiled"
"""Key of a result after which its process can run nothing."""
WORKER = "--worker"
COMMAND = [sys.executable, "-m", "scripts.dev.benchmarks.gpu_check", WORKER]


def main(
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the script itself.")] = "cuda",
    quick: Annotated[bool, typer.Option("--quick", help="Short inputs only, a few minutes on a CPU.")] = False,
    budget: Annotated[
        float, typer.Option(min=1, help="Seconds after which no case is begun and running ones are ended.")
    ] = 360.0,
    workers: Annotated[
        int, typer.Option(min=0, max=64, help="Processes that check at once; 0: one for two cores, up to 8.")
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what passed in the results that are there, and run the rest.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where the results go: scripts/dev/results/gpu_check.json, or runs/gpu_check.json from a CPU."
        ),
    ] = None,
    commit: Annotated[str, typer.Option(help="Of the code, if this folder is no checkout of git.")] = "",
) -> None:
    """Forward and backward in bf16, fp32 and fp16 against float64, then timings against PyTorch's own kernels."""
    kind = device.partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        typer.echo(
            "There is no CUDA device here, so nothing was checked; `--device cpu --quick` tries the script itself."
        )
        return
    output = (output or OUTPUT[kind]).with_suffix(".json")
    start, planned = time.monotonic(), stages(quick)
    output.parent.mkdir(parents=True, exist_ok=True)
    count = sum(len(cases) for _, cases in planned)
    results = Results(output, stored_study(output) if resume else {}, count, commit)
    kept = {result["case"] for result in results.found}
    # a core for the compiler, one for PyTorch
    several = workers or max(1, min(MOST_WORKERS[kind], len(os.sched_getaffinity(0)) // 2))
    waiting = [(alone, [case for case in cases if str(case) not in kept]) for alone, cases in planned]
    with open(output.with_suffix(".log"), "w", encoding="utf-8") as log:
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
    typer.echo(f"\n{markdown(results.record)}\n")
    typer.echo(f"{count - len(results.found)} cases were not reached within the budget; stored in {output}")
    if not results.found or any(not result["passed"] for result in results.found):
        raise typer.Exit(1)


class Results:
    """What was found so far, stored after every case; each result with the commit of the code, which is asked of git.

    earlier: a stored record, of which results that passed are kept if they are of the same GPU.
    """

    def __init__(self, output: Path, earlier: dict[str, Any], planned: int, commit: str = "") -> None:
        describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        self.commit = commit or subprocess.run(describe, cwd=ROOT, stdout=PIPE, text=True).stdout.strip()
        self.output, self.lock = output, threading.Lock()
        about = {**machine(), "cores": len(os.sched_getaffinity(0))}
        before = earlier.get("machine", {})
        self.found = [
            {"commit": before.get("commit", "–"), **result}
            for result in earlier.get("results", [])
            if result["passed"] and before.get("gpu") == about.get("gpu")
        ]
        self.record = {"machine": about, "planned": planned, "results": self.found}

    def add(self, result: dict[str, Any]) -> None:
        with self.lock:
            self.found.append(result | {"commit": self.commit})
            store_study(self.output, self.record)
            typer.echo(shown(result))


def shown(result: dict[str, Any]) -> str:
    """One line about a result."""
    errors = [
        f"{name.partition('_')[0]} {result[name]:.1e}" for name in ("output_error", "gradient_error") if name in result
    ]
    times = [f"{name} {t['ms']:.2f} ms" for name, t in result.get("timings", {}).items() if "ms" in t]
    text = ", ".join([*errors, *times, *result.get("paths", ())])
    return f"{'' if result['passed'] else 'FAILED '}{result['case']}: {text}" + (
        f"; {result['failure']}" if "failure" in result else ""
    )


def markdown(record: dict[str, Any]) -> str:
    """Correctness, a line for each group, with every failure in full; then timings and decoding in tables of their
    own."""
    results = [{"commit": record["machine"].get("commit", "–"), **result} for result in record["results"]]
    failures = "\n".join(f"- {shown(result)}" for result in results if not result["passed"])
    parts = [f"{sum(result['passed'] for result in results)} of {len(results)} cases passed.", failures]
    for caption, table in (
        ("Against float64: the largest errors of outputs / of gradients.", correctness_table),
        (TIMES, timing_table),
        ("A training step of BERT's base size with AdamW, milliseconds.", model_table),
    ):
        header, rows = table(results)
        if rows:
            parts += [caption, markdown_table(header, rows)]
    return "\n\n".join(part for part in parts if part)


def correctness_table(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """For each engine how many cases passed, and the largest errors in each dtype."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        engine = mechanism_info(result["mechanism"]).engine.replace("_", " ")
        groups.setdefault(TASK_GROUPS.get(result["task"], engine), []).append(result)
    dtypes = [
        dtype
        for dtype in ("bf16", "fp16", "fp32")
        if any(r["dtype"] == dtype and "output_error" in r for r in results)
    ]

    def worst(found: Sequence[dict[str, Any]], dtype: str) -> str:
        of_dtype = [result for result in found if result["dtype"] == dtype]
        largest = [
            max((r[name] for r in of_dtype if name in r), default=None) for name in ("output_error", "gradient_error")
        ]
        return " / ".join(f"{error:.0e}" for error in largest if error is not None) or "–"

    rows = [
        [group, f"{sum(r['passed'] for r in found)} of {len(found)}", *(worst(found, dtype) for dtype in dtypes)]
        for group, found in groups.items()
    ]
    return ["checked", "passed", *dtypes], rows


TIMES = """Milliseconds of a layer; in brackets, relative to full attention by SDPA's flash kernel (< 1: faster).
If there is a column for the first layer of a pass, longattn is a later layer. Host: until all is launched.
Device: the kernels alone."""


def timing_table(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row for each mechanism in a setting, and length; a column for each way to compute it, the paths that ran, and
    the commit."""
    timed = [
        (in_words(result), result, times_of(result))
        for result in results
        if result["task"] == "time" and "timings" in result
    ]
    measured = {way for _, _, times in timed for way in times}
    first = [way for way in ("longattn", "host", "device", "first layer") if way in measured]
    ways = [*first, *sorted(measured - {*first, *BASELINES}), *(way for way in BASELINES if way in measured)]

    def cell(times: dict[str, float], way: str) -> str:
        full = next((times[name] for name in BASELINES if name in times), None)
        factor = (
            f" (×{times[way] / full:.2f})"
            if full and way in times and way not in ("host", "device", *BASELINES)
            else ""
        )
        return f"{times[way]:.2f}{factor}" if way in times else "–"

    places = {words: place for place, words in enumerate(dict.fromkeys(words for words, _, _ in timed))}
    rows = [
        [
            words,
            f"{result['length']:,}",
            *(cell(times, way) for way in ways),
            ", ".join(result["paths"]),
            result["commit"],
        ]
        for words, result, times in sorted(timed, key=lambda line: (places[line[0]], line[1]["length"]))
    ]
    return ["ms", "tokens", *ways, "path", "commit"], rows


def model_table(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Training steps of LongBert beside those of BERT by SDPA."""
    rows = []
    for result in results:
        if result["task"] == "model" and "timings" in result:
            times = times_of(result)
            faster = f"{times['longattn']:.1f} ({times['stock'] / times['longattn']:.2f}×)"
            others = [f"{times[name]:.1f}" if name in times else "–" for name in ("host", "device", "stock")]
            rows.append([in_words(result), f"{result['length']:,}", faster, *others, result["commit"]])
    return ["ms (times as fast as stock)", "tokens", "LongBert", "host", "device", "BERT, SDPA", "commit"], rows


def times_of(result: dict[str, Any]) -> dict[str, float]:
    """Milliseconds by what was timed; of ours, also those of the host and of the device."""
    times = {name: timing["ms"] for name, timing in result["timings"].items() if "ms" in timing}
    ours = result["timings"]["longattn"]
    return times | {name: ours[f"{name}_ms"] for name in ("host", "device") if f"{name}_ms" in ours}


def in_words(result: dict[str, Any]) -> str:
    return f"`{result['mechanism']}`" + f", {result['setting']}" * bool(result["setting"])


def failed(case: DeviceCase, failure: str) -> dict[str, Any]:
    """The result of a case that found nothing."""
    return case.record() | {"passed": False, "failure": failure}


class Worker:
    """A process that runs one case after another; what it prints besides goes into ``log``."""

    def __init__(self, device: str, log: IO[str]) -> None:
        # a graph has one kernel or two, and workers are many
        environment = {"TORCHINDUCTOR_COMPILE_THREADS": "1", **os.environ}
        self.process = subprocess.Popen(
            [*COMMAND, device], cwd=ROOT, env=environment, stdin=PIPE, stdout=PIPE, stderr=log, text=True
        )

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
        failure = (
            f"it was ended after {took:.0f} seconds" if took >= seconds else f"its process ended with exit code {code}"
        )
        return failed(case, failure)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def run_stage(
    cases: Sequence[DeviceCase],
    workers: int,
    start: Callable[[], Worker],
    add: Callable[[dict[str, Any]], None],
    end: float,
    deadline: float,
) -> list[DeviceCase]:
    """Run the cases in their order by so many workers, and return those that were not begun by the ``end``; at the
    deadline, running ones are ended."""
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
                longer = "compiled" in (case.task, case.mode)
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
    """Run the cases that come as lines of JSON, and write a line with each result; after an error that spoils the
    device, end."""
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
