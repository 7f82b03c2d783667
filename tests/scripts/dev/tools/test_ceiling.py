"""The package may not grow, and its ceilings follow when it shrinks."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.dev.tools.ceiling import against_ceilings

FUNCTION = "def f():\n    pass\n"
SIZES = {"lines": 12, "functions": 6, "bytes": 6 * len(FUNCTION)}
"""Of the package that the fixture writes."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, functions in {"errors.py": 2, "engines/band.py": 4}.items():
        (tmp_path / "hf_longattn" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hf_longattn" / name).write_text(FUNCTION * functions)
    return tmp_path


@pytest.mark.parametrize(("unit", "slack"), [("lines", 500), ("functions", 40), ("bytes", 25_000)])
def test_ceiling_forbids_growth_and_follows_a_shrinking_package(tree: Path, unit: str, slack: int) -> None:
    size = SIZES[unit]
    said = {}
    for ceiling in (size - 1, size, size + slack - 1, size + slack):
        ceilings = "\n".join(f"{name} = {number}" for name, number in (SIZES | {unit: ceiling}).items())
        (tree / "pyproject.toml").write_text(f"[tool.hf_longattn.size]\n{ceilings}\n")
        said[ceiling - size] = against_ceilings(tree)
    assert said[0] == said[slack - 1] == ""
    assert said[-1] == f"hf_longattn has {size} {unit} and may have {size - 1} (pyproject.toml); take out 1\n"
    assert said[slack] == f"hf_longattn has {size} {unit}; lower [tool.hf_longattn.size] in pyproject.toml from {size + slack:,} to that\n"
