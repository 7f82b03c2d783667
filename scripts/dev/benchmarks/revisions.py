"""This checkout against another revision of the project: mechanisms, whole models, training steps and decoding, on one thread.

    python -m scripts.dev.benchmarks.revisions c68cb07  # writes results/revisions.json and .md; resumes where it was interrupted
    python -m scripts.dev.benchmarks.revisions c68cb07 --again  # measures everything anew
    python -m scripts.dev.benchmarks.revisions c68cb07 --only Bert  # only the cases with this in their name; stores nothing

The revision is checked out in a temporary folder. Each side has a process, which keeps what it has built; the processes take turns, and a
ratio is the median over the turns. What seems slower is measured once more in new processes,
with more turns. Times are processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.dev import ROOT
from scripts.dev.benchmarks.report import machine, markdown_table, store_study, stored_study

WORKER = Path(__file__).with_name("revision_cases.py")
OUTPUT = Path("scripts/dev/results/revisions")
TURNS, MORE_TURNS = 7, 25
SLOWER = 1.03
"""Quotient of times from which a case is measured again, and marked."""


@contextmanager
def worker(checkout: Path) -> Iterator[subprocess.Popen[str]]:
    """The process that runs cases with the package of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(WORKER)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=checkout, env=environment, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(process: subprocess.Popen[str], name: str | None = None) -> Any:
    """What a worker prints, after it was sent the name of a case."""
    assert process.stdin is not None
    assert process.stdout is not None
    if name is not None:
        process.stdin.write(name + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"Error: The process in {process.args!r} ended; run it by hand to see why.")
    return json.loads(line)


def time_in_turns(sides: Sequence[subprocess.Popen[str]], name: str, turns: int) -> list[list[float]] | str:
    """Milliseconds of both sides for every turn, or why one of them fails."""
    taken = []
    for turn in range(turns):
        by_side = {index: answer(sides[index], name) for index in ((0, 1) if turn % 2 else (1, 0))}
        for index in (0, 1):
            if isinstance(by_side[index], str):
                return f"{('before', 'now')[index]}: {by_side[index]}"
        taken.append([by_side[0], by_side[1]])
    return taken


def quotient(turns: Sequence[Sequence[float]]) -> float:
    """The time now over the time before: the median over the turns."""
    return statistics.median(now / before for before, now in turns)


def markdown(record: dict[str, Any]) -> str:
    """The page of a stored comparison."""
    rows = []
    for name, turns in record["milliseconds"].items():
        if isinstance(turns, str):
            rows.append([name, "", "", turns])
            continue
        before, now = (statistics.median(turn[index] for turn in turns) for index in (0, 1))
        shown = f"{quotient(turns):.2f}"
        rows.append([name, f"{before:,.1f}", f"{now:,.1f}", f"**{shown}**" if quotient(turns) > SLOWER else shown])
    slower = sum(not isinstance(turns, str) and quotient(turns) > SLOWER for turns in record["milliseconds"].values())
    about = record["machine"]
    return (
        f"# Speed against revision {record['before']}\n\nProcessor time in ms of one thread, in turns; the ratio is now over before. "
        f"{len(rows)} cases, {slower} slower by more than 3 %.\n\n{markdown_table(['case', 'before', 'now', 'ratio'], rows)}\n\n"
        f"*{about['processor']}, torch {about['torch']}, transformers {about['transformers']}, {about['date']}*\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 1 where a case is slower by more than 3 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="a commit of this repository")
    parser.add_argument("--only", help="cases with this in their name; nothing is stored")
    parser.add_argument("--again", action="store_true", help="measure anew what is stored")
    options = parser.parse_args(arguments)
    commit = subprocess.run(["git", "rev-parse", "--short", options.revision], cwd=ROOT, text=True, capture_output=True)
    if commit.returncode:
        print(f"Error: There is no revision {options.revision!r} here; git log lists them.", file=sys.stderr)
        return 2
    about = {"machine": machine(), "before": commit.stdout.strip()}
    stored = {} if options.again or options.only else stored_study(OUTPUT)
    record: dict[str, Any] = {**about, "milliseconds": stored.get("milliseconds", {}) if stored.get("before") == about["before"] else {}}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "-q", "--shared", "--no-checkout", str(ROOT), folder], check=True)
        subprocess.run(["git", "checkout", "-q", record["before"]], cwd=folder, check=True)
        with worker(Path(folder)) as before, worker(ROOT) as now:
            known = [answer(before), answer(now)]
            wanted = [name for name in known[1] if name in known[0] and (options.only or "") in name]
            for name in [name for name in wanted if name not in record["milliseconds"]]:
                turns = time_in_turns((before, now), name, TURNS)
                if not isinstance(turns, str) and quotient(turns) > SLOWER:
                    with worker(Path(folder)) as old, worker(ROOT) as new:  # where a process's memory lies can cost some per cent
                        answer(old), answer(new)
                        turns = time_in_turns((old, new), name, MORE_TURNS)
                record["milliseconds"][name] = turns
                if options.only is None:
                    store_study(OUTPUT, record)
                print(f"{name}: {turns if isinstance(turns, str) else format(quotient(turns), '.3f')}", file=sys.stderr, flush=True)
    if options.only is None:
        store_study(OUTPUT, record, markdown(record))
    print(markdown(record))
    return int(any(not isinstance(turns, str) and quotient(turns) > SLOWER for turns in record["milliseconds"].values()))


if __name__ == "__main__":
    sys.exit(main())
