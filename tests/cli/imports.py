"""What a command imports; nothing is imported here, so that what it imports is its doing."""

from __future__ import annotations

import runpy
import sys

SLOW = ("torch", "transformers", "datasets", "accelerate")


def list_slow_imports(*arguments: str) -> None:
    """Run `python -m hf_longattn ARGUMENTS`; the last line on stderr lists the slow libraries that are imported in the end."""
    sys.argv[1:] = arguments
    try:
        runpy.run_module("hf_longattn", run_name="__main__", alter_sys=True)
    finally:
        print("imported:", [name for name in SLOW if name in sys.modules], file=sys.stderr)
