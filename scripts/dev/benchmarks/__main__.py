"""``python -m scripts.dev.benchmarks`` from a checkout."""

from .app import app

app(prog_name="python -m scripts.dev.benchmarks")
