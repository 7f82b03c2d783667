"""The package's lines against their ceiling in pyproject.toml, as part of `make lint`: ``python -m scripts.dev.tools.ceiling``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import tomllib

from scripts.dev import ROOT

SLACK = 500
"""Lines below the ceiling at which it has to be lowered."""


def against_ceiling(tree: Path) -> str:
    """What is wrong with the package's lines or their ceiling, a line; "" if nothing is."""
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (tree / "hf_longattn").rglob("*.py"))
    ceiling = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hf_longattn"]["size"]["lines"]
    if lines > ceiling:
        return f"hf_longattn has {lines:,} lines and may have {ceiling:,} (pyproject.toml); take out {lines - ceiling:,}\n"
    if lines <= ceiling - SLACK:
        return f"hf_longattn has {lines:,} lines; lower [tool.hf_longattn.size] in pyproject.toml from {ceiling:,} to that\n"
    return ""


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    wrong = against_ceiling(ROOT)
    print(wrong, end="")
    sys.exit(wrong != "")
