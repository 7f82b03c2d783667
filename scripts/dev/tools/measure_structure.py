"""How much there is to read: the size of the package, and what a reader meets who follows one call.

    python -m scripts.dev.tools.measure_structure                                     this checkout, as the column "now"
    python -m scripts.dev.tools.measure_structure --tree ../old --name before         another one, say a git worktree of an older commit
    python -m scripts.dev.tools.measure_structure --ceiling                           part of `make lint`: the package grows no more

Each run measures one tree and puts it into OUTPUT.json beside those that are there; OUTPUT.md is the table of all.

- Size: Python files of hf_longattn/ and their lines; generated stubs (.pyi) are not counted.
- Imports: the modules that a mechanism's file imports, directly and through others; those of mechanisms/ and engines/, and all.
- A call: the files and functions of the package that run in it, and how often the next function is in another file than the one before
  ("stays": how often a reader opens a file). Lambdas and comprehensions count as part of the function that holds them. The call is made
  once before, so that imports and caches do not count.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import tomllib

from scripts.dev import RESULTS, ROOT

OUTPUT = RESULTS / "structure"
LENGTH = 1024
SLACK = 500
"""Lines below the ceiling at which it has to be lowered."""
CALLS: dict[str, dict[str, Any]] = {
    "window": {"mechanism": "window", "window": 128},
    "linear": {"mechanism": "linear"},
    "window, left padding": {"mechanism": "window", "window": 128},
}
PADDED = ("window, left padding",)
CONVERT = ["--mechanism", "longformer", "--option", "window=16", "--max-length", "128"]
ROWS = {
    "files": "files of the package",
    "lines": "lines",
    "mean_lines": "lines of a file, mean",
    "median_lines": "lines of a file, median",
    "largest": "largest file",
    "shortest_mechanism": "shortest mechanism",
    "shortest_family": "shortest family",
    "padding": "files of mechanisms/, engines/ and memory/ that read a padding mask",
    "imports of window": "modules that `window` imports: mechanisms and engines / all",
    "imports of linear": "modules that `linear` imports: mechanisms and engines / all",
    **{name: f"`attend(…)`, {name}: files / functions / stays" for name in CALLS},
    "convert": "`longattn convert`: files / functions / stays",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, help="a checkout (default: this one)")
    parser.add_argument("--name", default="now", help="its column (default: now)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="path without suffix (default: %(default)s)")
    parser.add_argument("--ceiling", action="store_true", help="compare the package's lines with [tool.hf_longattn.size] of pyproject.toml")
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    tree = options.tree.resolve()
    if not (tree / "hf_longattn").is_dir():
        parser.error(f"{tree} holds no hf_longattn/")
    if options.ceiling:
        wrong = against_ceiling(tree)
        print(wrong, end="")
        return int(wrong != "")
    if options.probe:
        print(json.dumps(probe(tree)))
        return 0
    # In a new process, which imports that tree's package.
    command = [sys.executable, str(Path(__file__).resolve()), "--probe", "--tree", str(tree)]
    done = subprocess.run(command, env=_environment(tree), stdout=subprocess.PIPE, text=True, check=True)
    path = options.output.with_suffix(".json")
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stored[options.name] = {"commit": _commit(tree), **size(tree), **closures(tree), **json.loads(done.stdout.splitlines()[-1])}
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    page = (
        "# How much there is to read\n\nWritten by `python -m scripts.dev.tools.measure_structure`, which says what is counted.\n\n"
        + f"{table(stored)}\n"
    )
    path.with_suffix(".md").write_text(page, encoding="utf-8")
    print(table(stored))
    return 0


def size(tree: Path) -> dict[str, Any]:
    """Files and lines of the package."""
    package = tree / "hf_longattn"
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sorted(package.rglob("*.py"))}
    largest = max(lines, key=lines.__getitem__)
    return {
        "files": len(lines),
        "lines": sum(lines.values()),
        "mean_lines": round(statistics.mean(lines.values())),
        "median_lines": round(statistics.median(lines.values())),
        "largest": [str(largest.relative_to(package)), lines[largest]],
        "padding": sum(names_padding(path) for folder in ("mechanisms", "engines", "memory") for path in (package / folder).rglob("*.py")),
    }


def against_ceiling(tree: Path) -> str:
    """What is wrong with the package's lines or their ceiling, a line; "" if nothing is."""
    lines, file = size(tree)["lines"], tree / "pyproject.toml"
    ceiling = tomllib.loads(file.read_text(encoding="utf-8"))["tool"]["hf_longattn"]["size"]["lines"]
    if lines > ceiling:
        return f"hf_longattn has {lines:,} lines and may have {ceiling:,} (pyproject.toml); take out {lines - ceiling:,}\n"
    if lines <= ceiling - SLACK:
        return f"hf_longattn has {lines:,} lines; lower [tool.hf_longattn.size] in pyproject.toml from {ceiling:,} to that\n"
    return ""


def names_padding(path: Path) -> bool:
    """Whether code of a file reads a padding mask."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return any("padding_mask" in (getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "arg", "")) for node in nodes)


def closures(tree: Path) -> dict[str, list[int]]:
    """Per mechanism the number of modules that its file imports through all of them: of mechanisms/ and engines/, and of the package."""
    package = tree / "hf_longattn"
    modules = {".".join(("hf_longattn", *path.relative_to(package).with_suffix("").parts)): path for path in package.rglob("*.py")}
    rooms = {}
    for mechanism in ("window", "linear"):
        start = f"hf_longattn.mechanisms.{mechanism}"
        seen, left = set(), [start]
        while left:
            name = left.pop()
            if name not in seen:
                seen.add(name)
                left += imported(name, modules)
        core = [name for name in seen - {start} if name.split(".")[1] in ("mechanisms", "engines")]
        rooms[f"imports of {mechanism}"] = [len(core), len(seen) - 1]
    return rooms


def imported(name: str, modules: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a module imports when it is imported itself: not those of functions or of types only."""
    package = name.split(".")[:-1]
    for node in top_level(ast.parse(modules[name].read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        for target in targets:
            holder = target.rpartition(".")[0]
            module = next(
                (candidate for candidate in (target, f"{target}.__init__", holder, f"{holder}.__init__") if candidate in modules), None
            )
            if module:
                yield module


def top_level(nodes: list[Any]) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements that run when a module is imported."""
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from top_level(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for field in ("body", "orelse", "finalbody", "handlers"):
                inner = getattr(node, field, None)
                yield from top_level(inner if isinstance(inner, list) else [])


def probe(tree: Path) -> dict[str, Any]:
    """What needs the tree's own package: calls under a profiler, and the shortest files that register something."""
    import torch
    from transformers import BertConfig, BertForMaskedLM
    from transformers.utils import logging

    import hf_longattn
    from hf_longattn.cli import main as longattn
    from hf_longattn.mechanisms import mechanism_class

    package = Path(hf_longattn.__file__).parent
    assert package == tree / "hf_longattn", f"{package} is not of {tree}"
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    q, k, v = torch.randn(3, 1, 4, LENGTH, 64, generator=torch.Generator().manual_seed(0)).unbind()
    mask = torch.arange(LENGTH)[None] >= 100
    visits: dict[str, Any] = {}
    for name, settings in CALLS.items():
        options = {**settings, "padding_mask": mask} if name in PADDED else settings
        visits[name] = visited(partial(hf_longattn.attend, q, k, v, **options), package)
    with tempfile.TemporaryDirectory() as folder:
        shape = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        BertForMaskedLM(BertConfig(**shape, max_position_embeddings=64)).save_pretrained(f"{folder}/short")
        numbers = iter(range(2))

        def convert() -> None:
            try:
                longattn(["convert", f"{folder}/short", f"{folder}/long{next(numbers)}", *CONVERT, "--json"])
            except SystemExit as ended:
                if ended.code:
                    raise RuntimeError("the conversion failed") from None

        visits["convert"] = visited(convert, package)
    mechanisms = {Path(str(sys.modules[mechanism_class(name).__module__].__file__)) for name in hf_longattn.list_mechanisms()}
    families = {package / "families" / f"{name}.py" for name in hf_longattn.families.FAMILIES}
    for kind, paths in (("mechanism", mechanisms), ("family", {path for path in families if path.exists()})):
        lines, path = min((len(path.read_text(encoding="utf-8").splitlines()), path) for path in paths)
        visits[f"shortest_{kind}"] = [str(path.relative_to(package)), lines]
    return visits


def visited(call: Callable[[], object], package: Path) -> list[int]:
    """Files, functions and stays of the second run of a call."""
    call()
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(package)) and not code.co_name.startswith("<"):
            calls.append((code.co_filename, code.co_name))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    stays = 1 + sum(before[0] != after[0] for before, after in pairwise(calls))
    return [len({file for file, _ in calls}), len(set(calls)), stays]


def table(stored: dict[str, dict[str, Any]]) -> str:
    """One row per number, one column per tree."""

    def cell(value: Any) -> str:
        if isinstance(value, list):
            return f"`{value[0]}`, {value[1]}" if isinstance(value[0], str) else " / ".join(map(str, value))
        return f"{value:,}"

    lines = [
        "| | " + " | ".join(f"{name} ({record['commit']})" for name, record in stored.items()) + " |",
        "|---" + "|---:" * len(stored) + "|",
    ]
    lines += [f"| {title} | " + " | ".join(cell(record[key]) for record in stored.values()) + " |" for key, title in ROWS.items()]
    return "\n".join(lines)


def _environment(tree: Path) -> dict[str, str]:
    path = os.pathsep.join([str(tree), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _commit(tree: Path) -> str:
    done = subprocess.run(["git", "-C", str(tree), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no git"


if __name__ == "__main__":
    sys.exit(main())
