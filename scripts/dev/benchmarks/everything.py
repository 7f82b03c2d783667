"""Make every stored result anew, in one run: `make bench`, or `python -m scripts.dev.benchmarks.everything --only window`.

Commands come from `scripts/dev/results/commands.toml`, one after the other, since timings count on a quiet machine only. A run that was
stopped goes on where it was: a command that succeeded is not run again at the same commit, but with `--again`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import tomllib

from hf_longattn.errors import LongAttentionError, OptionError
from hf_longattn.staging import write_text
from scripts.dev import RESULTS, ROOT
from scripts.dev.benchmarks.report import one_sentence_errors

COMMANDS = RESULTS / "commands.toml"
BUSY = 0.5
"""Other programs may use this many processors before a timing says nothing."""
DONE = ROOT / ".tmp" / "bench.json"
"""The commands that succeeded, by the commit of the checkout."""


class Job(NamedTuple):
    """A command, the stems of the results that it makes, and the commit that has its code, where this one has not."""

    results: tuple[str, ...]
    command: str
    commit: str | None = None


def read_jobs(studies: bool = True) -> list[Job]:
    """All jobs in the order in which they run, benchmarks first."""
    stored = tomllib.loads(COMMANDS.read_text(encoding="utf-8"))
    finished = stored["finished"]
    commit = finished.pop("at")
    jobs = [Job(tuple(names.split()), command) for names, command in stored["benchmarks"].items()]
    if studies:
        jobs += [Job(tuple(names.split()), command) for names, command in stored["studies"].items()]
        jobs += [Job(tuple(names.split()), command, commit) for names, command in finished.items()]
    return jobs


def read_done(commit: str) -> list[str]:
    """The commands that succeeded at a commit."""
    return json.loads(DONE.read_text(encoding="utf-8")).get(commit, []) if DONE.exists() else []


def checkout_of(commit: str) -> Path:
    """A clone of this repository at a commit, installed, in .tmp.

    Raises:
        LongAttentionError: it cannot be made.
    """
    clone = ROOT / ".tmp" / f"bench-{commit}"
    if not (clone / ".venv" / ".installed").exists():
        steps = (
            ["git", "clone", "-q", str(ROOT), str(clone)],
            ["git", "-C", str(clone), "checkout", "-q", commit],
            ["make", "-C", str(clone), "install"],
        )
        for step in steps[clone.exists() :]:
            if subprocess.run(step).returncode:
                raise LongAttentionError(f"The code of finished studies cannot be installed: {shlex.join(step)} failed; see above.")
    return clone


def run(job: Job) -> bool:
    """Run a job's command, and bring its results here; whether it succeeded."""
    folder = checkout_of(job.commit) if job.commit else ROOT
    python = str(folder / ".venv" / "bin" / "python") if job.commit else sys.executable
    words = [os.path.expandvars(word) for word in shlex.split(job.command)]
    if missing := [word for word in words if word.startswith("$")]:
        name = missing[0][1:]
        raise OptionError(f"{job.command!r} needs the environment variable {name}; set it to the files that the program's --help names.")
    if subprocess.run([python, *words[1:]], cwd=folder).returncode:
        return False
    if job.commit:
        for file in (folder / RESULTS.relative_to(ROOT)).iterdir():
            if file.stem in job.results:
                shutil.copy2(file, RESULTS)
    return True


def check_quiet() -> None:
    """Refuse to measure beside other programs.

    Raises:
        OptionError: they use more than :data:`BUSY` processors.
    """
    if (load := os.getloadavg()[0]) > BUSY:
        raise OptionError(
            f"Other programs use {load:.1f} processors, so timings would say little; wait until they are done, or add --busy."
        )


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run what is chosen; 1 if a command failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", metavar="TEXT", help="results with this in their name")
    parser.add_argument("--studies", action="store_true", help="also trainings and checks of every family, which take days")
    parser.add_argument("--again", action="store_true", help="also commands that succeeded at this commit")
    parser.add_argument("--busy", action="store_true", help="also while other programs run")
    parser.add_argument("--list", action="store_true", help="say what would run")
    chosen = parser.parse_args(arguments)
    jobs = [job for job in read_jobs(chosen.studies) if not chosen.only or any(chosen.only in name for name in job.results)]
    if not jobs:
        raise OptionError(f"No stored result has {chosen.only!r} in its name; --list shows them, with --studies all of them.")
    commit = subprocess.check_output(["git", "-C", str(ROOT), "rev-parse", "HEAD"], text=True).strip()
    done = [] if chosen.again else read_done(commit)
    left = [job for job in jobs if job.command not in done]
    if chosen.list:
        print("\n".join(f"{' '.join(job.results)}: {job.command}{f' (at {job.commit})' if job.commit else ''}" for job in left))
        return 0
    if not chosen.busy:
        check_quiet()
    failed: list[str] = []
    for number, job in enumerate(left, 1):
        print(f"[{number}/{len(left)}] {job.command}", flush=True)
        start = time.monotonic()
        (done if run(job) else failed).append(job.command)
        write_text(DONE, json.dumps({commit: done}))
        state = "failed" if job.command in failed else "done"
        print(f"[{number}/{len(left)}] {state} after {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    print(
        "\n".join(["These commands failed:", *failed]) if failed else f"made {sum(len(job.results) for job in left)} results in {RESULTS}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
