"""Measure attention, whole models or training: `python scripts/benchmark.py attention --lengths 1024,4096 --against sdpa,flex`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # scripts.dev is part of the checkout, not of the installed package

from scripts.dev.benchmarks.app import app

if __name__ == "__main__":
    app()
