"""``python -m benchmarks`` from a checkout."""

from .app import app

app(prog_name="python -m benchmarks")
