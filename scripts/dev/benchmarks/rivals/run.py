"""The strongest ways to run five models on a CPU, side by side: seconds, memory, and equality first.

    python -m scripts.dev.benchmarks.rivals --setup  # downloads and makes what is measured, into build/rivals
    python -m scripts.dev.benchmarks.rivals  # measures in the order of importance
    python -m scripts.dev.benchmarks.rivals --resume --minutes 20  # what is not stored yet, for 20 minutes
    python -m scripts.dev.benchmarks.rivals --check  # every way once at 512 tokens, for equality; stores nothing
    python -m scripts.dev.benchmarks.rivals --quick  # MiniLM at 512 tokens by what is installed; stores nothing
    python -m scripts.dev.benchmarks.rivals --again longattn  # makes these graphs anew and measures their ways again

Each model, length and way has a fresh process. The processes of a group are loaded one after the other, and then make
their passes in turns. The first pass is compared with transformers' eager attention. A way whose outputs differ, or
which takes several times as long as the fastest, makes no further pass. One that has grown by gigabytes makes its
passes without waiting for its turns, and ends. The best pass counts, and the largest memory.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_longattn.errors import LongAttentionError
from scripts.dev import RESULTS, ROOT
from scripts.dev.benchmarks import report
from scripts.dev.benchmarks.rivals.library import PACKAGES
from scripts.dev.benchmarks.rivals.measure import ANSWER
from scripts.dev.benchmarks.rivals.plan import (
    HOME,
    LARGE,
    LONG,
    PLAN,
    QUICK,
    THREADS,
    WAYS,
    Group,
    checked,
    chosen,
    expected_file,
    file_of,
)
from scripts.dev.benchmarks.rivals.prepare import download, prepare
from scripts.dev.benchmarks.rivals.table import RIGHT, line, markdown, verdict
from scripts.dev.real import ENGINE

OUTPUT = RESULTS / "rivals"
PASSES, TURN_SECONDS, SLOW = 3, 60.0, 1.5
"""Maximum passes of a way, maximum seconds of the third turn, and the multiple of the fastest way's seconds beyond
which a way makes one pass."""
PAUSE = 0.3
"""Seconds before a pass, in which threads of other processes stop spinning."""
GROWN, SPARE, PLAIN = 2.0, 4.0, 6.0
"""GiB beyond its weights after which a process ends early, GiB that stay free, and GiB of a process that is not in
:data:`LARGE`."""
Rows = dict[tuple[str, int, str], dict[str, Any]]
"""(model, length, way) -> row."""
ERROR = re.compile(r"^(?:[\w.]*(?:Error|Exception)|error): .*", re.MULTILINE)
PATIENCE = 900.0
"""Maximum seconds of an answer."""
LIBRARIES = ("torch", "transformers", "onnxruntime", "openvino", "onnx", "onnxscript")


class Process:
    """A process of ``measure`` and its answers."""

    def __init__(self, home: Path, group: Group, way: str) -> None:
        compare = "compare" if WAYS[way].same else "alone"
        command = [sys.executable, "-W", "ignore", "-m", "scripts.dev.benchmarks.rivals.measure"]
        self.log = home / "logs" / f"measure-{way.replace(':', '-')}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        variables = {
            "OMP_NUM_THREADS": str(THREADS),
            "PYTHONPATH": str(ROOT),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"),
        }
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*command, str(home), group.model, str(group.length), way, compare],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={**os.environ, **variables},
            )

    def answer(self) -> dict[str, Any]:
        """The next answer, or why there is none."""
        assert self.process.stdout is not None
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            for text in self.process.stdout:
                if text.startswith(ANSWER):
                    found: dict[str, Any] = json.loads(text.removeprefix(ANSWER))
                    return found
        finally:
            timer.cancel()
        code = self.process.wait()
        errors = ERROR.findall(self.log.read_text(encoding="utf-8", errors="replace"))
        return {"error": errors[-1][:160] if code > 0 and errors else f"ended with {code}"}

    def make_pass(self) -> dict[str, Any]:
        """A pass."""
        assert self.process.stdin is not None
        time.sleep(PAUSE)
        with contextlib.suppress(BrokenPipeError):  # it has ended, as its answer says
            os.write(self.process.stdin.fileno(), b"pass\n")
        return self.answer()

    def end(self) -> None:
        """End the process."""
        with self.process:
            self.process.kill()


def merged(row: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A row with one more pass: the best time and the largest memory."""
    if "error" in values or not row.get("passes"):
        return {**row, **values, "passes": 1 - ("error" in values)}
    best = {name: min(row[name], values[name]) for name in ("seconds", "processor_seconds")}
    most = {name: max(row[name], values[name]) for name in ("mebibytes", "process_mebibytes")}
    return {**row, **best, **most, "passes": row["passes"] + 1}


def available() -> float:
    """GiB of memory that processes can still take."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return int(next(text for text in lines if text.startswith("MemAvailable")).split()[1]) / 2**20


def needed(group: Group, way: str) -> float:
    """GiB that a process may take."""
    return LARGE.get((way, group.model), PLAIN) if group.length >= LONG else PLAIN / 2


def fits(group: Group, ways: Sequence[str]) -> bool:
    """Whether ways may be loaded together: none takes far more memory than its weights, and enough is free."""
    return all(needed(group, way) <= PLAIN for way in ways) and available() > PLAIN + SPARE


def measured(home: Path, group: Group, passes: int) -> list[dict[str, Any]]:
    """The rows of a group. Its processes are loaded together as far as the memory allows."""
    rows, waiting = {}, list(group.ways)
    while waiting:
        batch: dict[str, Process] = {}
        try:
            while waiting and (not batch or (passes > 1 and fits(group, [*batch, waiting[0]]))):
                way = waiting.pop(0)
                rows[way] = row_of(group, way)
                if available() < needed(group, way):
                    rows[way]["error"] = f"needs {needed(group, way):.0f} GiB, and {available():.0f} are free"
                else:
                    batch[way] = Process(home, group, way)
                    rows[way] |= batch[way].answer()
                if "error" in rows[way]:
                    print(line(rows[way]), file=sys.stderr, flush=True)
            take_turns({way: process for way, process in batch.items() if "error" not in rows[way]}, rows, passes)
        finally:
            for process in batch.values():
                process.end()
    return list(rows.values())


def take_turns(batch: dict[str, Process], rows: dict[str, dict[str, Any]], passes: int) -> None:
    """Make the passes of loaded processes in turns, and put them into ``rows``."""
    going = list(batch)
    for turn in range(passes):
        for way in going:
            rows[way] = merged(rows[way], batch[way].make_pass())
            print(line(rows[way]), file=sys.stderr, flush=True)
            if rows[way].get("mebibytes", 0) > GROWN * 2**10:
                for _ in range(passes - 1 if worth_more(rows, way) else 0):
                    rows[way] = merged(rows[way], batch[way].make_pass())
                batch[way].end()
        going = [way for way in going if rows[way].get("mebibytes", 0) <= GROWN * 2**10 and worth_more(rows, way)]
        if turn and sum(rows[way]["seconds"] for way in going) > TURN_SECONDS:
            break


def worth_more(rows: dict[str, dict[str, Any]], way: str) -> bool:
    """Whether a way's outputs are right and its first pass was not far slower than the fastest."""
    row, words = rows[way], RIGHT
    if verdict(row) not in RIGHT:
        words = ("another function",)
    fitting = [other["seconds"] for other in rows.values() if verdict(other) in words]
    return verdict(row) in words and row["seconds"] <= SLOW * min(fitting)


def versions(home: Path) -> dict[str, str]:
    """The versions of what ran."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    package, number = ENGINE.split("==")
    return found | {package: number} | dict(text.split("==") for text in PACKAGES if text.startswith(("sent", "opt")))


def forget(home: Path, text: str) -> None:
    """Remove the graphs whose name contains a text, and the int8 graphs made from them."""
    for folder in (home / "models").glob(f"*/graphs/*{text}*"):
        shutil.rmtree(folder)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = report.study_parser(__doc__, OUTPUT, "MiniLM at 512 tokens by what is installed")
    parser.add_argument("--home", type=Path, default=HOME, help="folder of models and graphs (default: %(default)s)")
    parser.add_argument("--setup", action="store_true", help="download and make what is measured, and measure nothing")
    parser.add_argument("--as-is", action="store_true", help="measure what is there, and make nothing")
    parser.add_argument("--check", action="store_true", help="one pass of every way at 512 tokens; stores nothing")
    parser.add_argument("--resume", action="store_true", help="keep the stored rows, and measure the others")
    parser.add_argument("--again", metavar="TEXT", help="make graphs with this in their name anew, and measure them")
    parser.add_argument("--only", metavar="TEXT", action="append", help="rows with this in MODEL:LENGTH:WAY")
    parser.add_argument("--minutes", type=float, default=600.0, help="start no group after these (default: 600)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = read_options(arguments)
    home, output = options.home.resolve(), report.output_of(options, OUTPUT)
    groups = PLAN
    if options.quick or options.check:
        groups, output = QUICK if options.quick else [*checked()], options.output
    groups = chosen(groups, options.only or [])
    if options.again:
        forget(home, options.again)
    try:
        if not options.quick and not options.as_is:
            download(home)
        failed = prepare(home, [] if options.as_is else groups)
    except LongAttentionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for reason in dict.fromkeys(failed.values()):
        print(f"left out: {reason}", file=sys.stderr)
    if options.setup:
        return 1 if failed else 0
    stored = report.stored_study(output).get("rows", []) if output and (options.resume or options.again) else []
    rows: Rows = {(row["model"], row["length"], row["way"]): row for row in stored}
    record = {**about_run(home), "rows": stored}
    end = time.monotonic() + 60 * options.minutes
    for number, group in enumerate(groups, 1):
        ways = tuple(way for way in group.ways if wanted(rows.get((group.model, group.length, way)), options.again))
        absent = {way: why for way in ways if (why := missing(home, group, way, failed))}
        for way, why in absent.items():
            rows[group.model, group.length, way] = row_of(group, way, error=why)
        ready = tuple(way for way in ways if way not in absent)
        if ready and time.monotonic() < end:
            print(f"[{number}/{len(groups)}] {group.model}, {group.length:,} tokens", file=sys.stderr, flush=True)
            for row in measured(home, group._replace(ways=ready), 1 if options.check else PASSES):
                rows[group.model, group.length, row["way"]] = row
        record["rows"] = [*rows.values()]
        if output:
            report.store_study(output, record)
    print(markdown(record))
    return 0


def about_run(home: Path) -> dict[str, Any]:
    """Machine, versions and commit."""
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        "machine": {**report.machine(), "threads": THREADS},
        "versions": versions(home),
        "commit": commit.stdout.strip(),
    }


def row_of(group: Group, way: str, **values: Any) -> dict[str, Any]:
    """The beginning of a row."""
    return {"model": group.model, "length": group.length, "way": way, **values}


def missing(home: Path, group: Group, way: str, failed: dict[tuple[str, str], str]) -> str | None:
    """Why a way cannot run."""
    for file in (file_of(home, group.model, way), expected_file(home, group.model, group.length)):
        if not file.exists():
            return failed.get((group.model, way), f"{file.name} was not made")
    return None


def wanted(row: dict[str, Any] | None, again: str | None) -> bool:
    """Whether a row is measured: it is not stored, it failed, or its graph was made anew."""
    return row is None or "error" in row or bool(again and again in row["way"])
