"""Make every stored result anew, in one run: `make bench`, or `python -m scripts.dev.benchmarks.everything --only
window`.

Commands come from `scripts/dev/results/commands.toml`, one after the other, since timings count on a quiet machine
only. A run that was stopped goes on where it was: a command that succeeded is not run again at the same commit, but
with `--again`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from typing import NamedTuple

import tomllib

from hf_longattn.errors import OptionError
from hf_longattn.files import write_text
from scripts.dev import RESULTS, ROOT

COMMANDS = RESULTS / "commands.toml"
BUSY = 0.5
"""Other programs may use this many processors before a timing says nothing."""
DONE = ROOT / ".tmp" / "bench.json"
"""The commands that succeeded, by the commit of the checkout."""


class Job(NamedTuple):
    """A command, and the stems of the results that it makes."""

    results: tuple[str, ...]
    command: str


def read_jobs(studies: bool = True) -> list[Job]:
    """All jobs in the order in which they run, benchmarks first."""
    stored = tomllib.loads(COMMANDS.read_text(encoding="utf-8"))
    commands = stored["benchmarks"] | (stored["studies"] if studies else {})
    return [Job(tuple(names.split()), command) for names, command in commands.items()]


def main(arguments: list[str] | None = None) -> int:
    """Run what is chosen; 1 if a command failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", metavar="TEXT", help="results with this in their name")
    parser.add_argument(
        "--studies", action="store_true", help="also trainings and checks of every family, which take days"
    )
    parser.add_argument("--again", action="store_true", help="also commands that succeeded at this commit")
    parser.add_argument("--busy", action="store_true", help="also while other programs run")
    chosen = parser.parse_args(arguments)
    jobs = [
        job for job in read_jobs(chosen.studies) if not chosen.only or any(chosen.only in name for name in job.results)
    ]
    if not jobs:
        raise OptionError(
            f"No stored result of {COMMANDS.name} has {chosen.only!r} in its name; correct it, or add --studies."
        )
    commit = subprocess.check_output(["git", "-C", str(ROOT), "rev-parse", "HEAD"], text=True).strip()
    done = json.loads(DONE.read_text(encoding="utf-8")).get(commit, []) if DONE.exists() and not chosen.again else []
    left = [job for job in jobs if job.command not in done]
    if not chosen.busy and (load := os.getloadavg()[0]) > BUSY:
        raise OptionError(
            f"Other programs use {load:.1f} processors, so timings would say little; wait until they are done, or add "
            "--busy."
        )
    failed: list[str] = []
    for number, job in enumerate(left, 1):
        print(f"[{number}/{len(left)}] {job.command}", flush=True)
        start = time.monotonic()
        ended = subprocess.run([sys.executable, *shlex.split(job.command)[1:]], cwd=ROOT).returncode
        (failed if ended else done).append(job.command)
        write_text(DONE, json.dumps({commit: done}))
        print(f"{'failed' if ended else 'done'} after {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    print(
        "\n".join(["These commands failed:", *failed])
        if failed
        else f"made {sum(len(job.results) for job in left)} results in {RESULTS}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except OptionError as error:
        raise SystemExit(f"error: {error}") from None
