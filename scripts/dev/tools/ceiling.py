"""The package's size against its ceilings in pyproject.toml, as part of `make lint`: ``python -m scripts.dev.tools.ceiling``."""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

import tomllib

from scripts.dev import ROOT

SLACK = {"lines": 500, "functions": 40, "bytes": 25_000}
"""How far below each ceiling the package may be before the ceiling has to be lowered."""


def package_size(tree: Path) -> dict[str, int]:
    """Lines, functions (methods and nested functions included) and bytes of all modules of the package."""
    texts = [path.read_bytes() for path in (tree / "hf_longattn").rglob("*.py")]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes)
    return {"lines": sum(len(text.splitlines()) for text in texts), "functions": functions, "bytes": sum(map(len, texts))}


def against_ceilings(tree: Path) -> str:
    """What is wrong with the package's size or its ceilings, a line each; "" if nothing is."""
    ceilings = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hf_longattn"]["size"]
    wrong = []
    for unit, size in package_size(tree).items():
        most = ceilings[unit]
        if size > most:
            wrong.append(f"hf_longattn has {size:,} {unit} and may have {most:,} (pyproject.toml); take out {size - most:,}")
        elif size <= most - SLACK[unit]:
            wrong.append(f"hf_longattn has {size:,} {unit}; lower [tool.hf_longattn.size] in pyproject.toml from {most:,} to that")
    return "".join(f"{line}\n" for line in wrong)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    wrong = against_ceilings(ROOT)
    print(wrong, end="")
    sys.exit(wrong != "")
