"""For those who develop the package: benchmarks, studies, tools, and the results that they store. A checkout has it, a
wheel does not."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "scripts" / "dev" / "results"
