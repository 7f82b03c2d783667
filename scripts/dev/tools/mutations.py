"""Plant faults of one line in the package, one after the other, and say whether the quick tests of the rooms named
catch each:

    python -m scripts.dev.tools.mutations [--revision COMMIT] [--only WORDS] [--output table.md]

A fault whose old text is not in its file exactly once is refused. Nothing of the checkout changes: a fault is planted
in a new work tree.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[3]
QUICK = "not slow and not thorough"
"""What `make test` runs."""
FAULTS = Path(__file__).with_name("mutations.toml")


@dataclass(frozen=True)
class Fault:
    """What is replaced in which file, and the tests that catch it."""

    name: str
    file: str
    old: str
    new: str
    tests: list[str]
    keyword: str = ""

    def planted(self, text: str) -> str:
        """The file's text with the fault.

        Raises:
            SystemExit: the old text is not there exactly once, or is the new one.
        """
        if text.count(self.old) != 1 or self.old == self.new:
            raise SystemExit(
                f"{self.name}: {self.file} holds {self.old!r} {text.count(self.old)} times; mend {FAULTS.name}"
            )
        return text.replace(self.old, self.new)


def caught(fault: Fault, tree: Path) -> bool:
    """Whether a quick test of the fault's rooms fails in the work tree ``tree`` with the fault.

    Raises:
        SystemExit: the tests cannot be run.
    """
    path = tree / fault.file
    # No compiled modules: one of another fault, of the same size and written in the same second, would pass for this
    # one's.
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    before = path.read_text(encoding="utf-8")
    path.write_text(fault.planted(before), encoding="utf-8")
    tests = [name for name in fault.tests if (tree / name).exists()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-qx",
        "-p",
        "no:cacheprovider",
        "-m",
        QUICK,
        "-k",
        fault.keyword,
        *tests,
    ]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.write_text(before, encoding="utf-8")
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR")) and "::" in line]
    if not tests or (done.returncode and not failures):
        raise SystemExit(f"{fault.name}: pytest ends with {done.returncode}\n{done.stdout[-2000:]}")
    print("\n".join(failures), flush=True)
    return bool(failures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revision", default="HEAD")
    parser.add_argument("--only", default="", help="the faults with these words in their names")
    parser.add_argument("--output", type=Path, help="write the table there as well")
    arguments = parser.parse_args()
    faults = [Fault(**values) for values in tomllib.loads(FAULTS.read_text(encoding="utf-8"))["fault"]]
    rows = ["| fault | file | caught |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", tree, arguments.revision], cwd=ROOT, check=True)
        try:
            for fault in faults:
                if arguments.only in fault.name:
                    rows.append(f"| {fault.name} | {fault.file} | {'yes' if caught(fault, tree) else '**no**'} |")
                    print(rows[-1], flush=True)
                    if arguments.output is not None:
                        arguments.output.write_text("\n".join(rows) + "\n", encoding="utf-8")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
    raise SystemExit(any(row.endswith("**no** |") for row in rows))


if __name__ == "__main__":
    main()
