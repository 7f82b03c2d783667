"""The package may not grow, and its ceiling follows when it shrinks."""

from __future__ import annotations

from pathlib import Path

from scripts.dev.tools.ceiling import against_ceiling


def test_the_package_may_not_grow_and_its_ceiling_follows(tmp_path: Path) -> None:
    for name, lines in {"errors.py": 4, "engines/band.py": 8}.items():
        (tmp_path / "hf_longattn" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hf_longattn" / name).write_text("x = 1\n" * lines)
    said = {}
    for ceiling in (11, 12, 511, 512):
        (tmp_path / "pyproject.toml").write_text(f"[tool.hf_longattn.size]\nlines = {ceiling}\n")
        said[ceiling] = against_ceiling(tmp_path)
    assert said[12] == said[511] == ""
    assert said[11] == "hf_longattn has 12 lines and may have 11 (pyproject.toml); take out 1\n"
    assert said[512] == "hf_longattn has 12 lines; lower [tool.hf_longattn.size] in pyproject.toml from 512 to that\n"
