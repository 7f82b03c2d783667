"""Measure attention, whole models or training: `python scripts/benchmark.py attention --lengths 1024,4096 --against sdpa,flex`."""

from hf_longattn.benchmarking.app import app

if __name__ == "__main__":
    app()
