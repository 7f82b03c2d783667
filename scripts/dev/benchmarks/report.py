"""The stored result: what was measured, on which machine, in JSON; with the tables that documents show."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hf_longattn.files import write_text

from .attention import Check
from .case import Case
from .run import Timing


def machine() -> dict[str, Any]:
    """Processor, cores, threads, versions and date."""
    about: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    if torch.cuda.is_available():
        about |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return about


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


@dataclasses.dataclass
class BenchmarkResult:
    """One run of the benchmark: checks, timings and ratios."""

    kind: str
    case: Case
    lengths: list[int]
    clock: str = "time"
    checks: list[Check] = dataclasses.field(default_factory=list)
    timings: list[Timing] = dataclasses.field(default_factory=list)
    ratios: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    left_out: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    machine: dict[str, Any] = dataclasses.field(default_factory=machine)

    @property
    def equal(self) -> bool:
        """Whether every comparison with the definition held."""
        return all(check.passed for check in self.checks)

    @property
    def name(self) -> str:
        """The stem of the files: kind, mechanism, options and what deviates from the defaults."""
        case = self.case
        options = [f"{name}{value}" for name, value in sorted(case.options.items())]
        marks = [f"globals{case.num_globals}"] * bool(case.num_globals) + ["causal"] * case.causal
        marks += ["backward"] * (case.backward and self.kind == "attention")
        marks += [f"layers{case.layers}"] * (self.kind != "attention" and case.layers != Case.layers)
        bases = [case.base] * (case.base != "bert")
        return (
            "-".join([self.kind, *bases, case.mechanism, *options, *marks, case.dtype])
            .replace("_", "-")
            .replace(" ", "")
        )

    def to_dict(self) -> dict[str, Any]:
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        case = {key: value for key, value in dataclasses.asdict(self.case).items() if key != "length"}
        return record | {
            "case": case,
            "equal": self.equal,
            "checks": [dataclasses.asdict(check) | {"passed": check.passed} for check in self.checks],
            "timings": [
                {
                    "implementation": t.implementation,
                    "length": t.length,
                    "median_ms": round(t.median, 3),
                    "rounds_ms": [round(r, 3) for r in t.rounds],
                }
                for t in self.timings
            ],
        }


ROW = 480
"""Maximum characters of a list or an object on one line of a stored result."""


def in_rows(value: Any, indent: int = 0) -> str:
    """JSON with every list and object on one line where it fits, and floats of six digits."""
    if isinstance(value, float) and math.isfinite(value):
        value = float(f"{value:.6g}")
    if not isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    inner = " " * (indent + 1)
    if isinstance(value, dict):
        parts = [
            f"{json.dumps(str(name), ensure_ascii=False)}: {in_rows(part, indent + 1)}" for name, part in value.items()
        ]
    else:
        parts = [in_rows(part, indent + 1) for part in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    row = f"{opening}{', '.join(parts)}{closing}"
    if len(row) <= ROW and "\n" not in row:
        return row
    return f"{opening}\n{inner}" + f",\n{inner}".join(parts) + f"\n{' ' * indent}{closing}"


def store_study(output: Path, record: dict[str, Any], text: str | None = None) -> Path:
    """Write ``OUTPUT.json`` and, with a text, ``OUTPUT.md``, each complete or not at all, and return the first's
    path."""
    output.parent.mkdir(parents=True, exist_ok=True)
    contents = {".json": in_rows(record) + "\n", ".md": text}
    for suffix, content in contents.items():
        if content is not None:
            write_text(output.with_suffix(suffix), content)
    return output.with_suffix(".json")


def stored_study(output: Path) -> dict[str, Any]:
    """What ``OUTPUT.json`` holds; empty if there is none."""
    file = output.with_suffix(".json")
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def study_parser(description: str | None, output: Path, quick: str) -> argparse.ArgumentParser:
    """The parser of a study's command: where its result goes, and a quick form, described by ``quick``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, help=f"path without suffix (default: {output}; with --quick, nothing is stored)"
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def output_of(options: argparse.Namespace, output: Path) -> Path | None:
    """Where the result goes by the options of :func:`study_parser`; ``None`` if it is not stored."""
    chosen: Path | None = options.output or (None if options.quick else output)
    return chosen


def where(about: dict[str, Any]) -> str:
    """Machine, versions and date of a stored result, in one line."""
    threads = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
    versions = f"torch {about['torch']}, transformers {about['transformers']}"
    return f"{about.get('gpu') or about['processor']}, {threads}, {versions}, {about['date']}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers aligned right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
