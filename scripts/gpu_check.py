"""Check every mechanism on CUDA against the float64 definition, then time them: `python scripts/gpu_check.py`."""

import sys
from pathlib import Path

# scripts.dev is part of the checkout, not of the installed package
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import typer

from scripts.dev.benchmarks.gpu_check import main

if __name__ == "__main__":
    typer.run(main)
