"""The numbers of a small tree, counted by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from scripts.dev.tools import measure_structure


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    package = tmp_path / "hf_longattn"
    for name, text in {
        "errors.py": "",
        "engines/common/dense.py": "from ...errors import X\n",
        "engines/band.py": "def run(padding_mask):\n    return padding_mask\n",
        "mechanisms/common/base.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ...engines import band\n",
        "mechanisms/window.py": "from ..engines.common.dense import x\nfrom .common import base\n\ndef f():\n    from ..engines import x\n",
        "mechanisms/linear.py": "import torch\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return tmp_path


def test_size_and_imports(tree: Path) -> None:
    size = measure_structure.size(tree)
    assert (size["files"], size["lines"], size["padding"]) == (6, 12, 1)
    assert size["largest"] == ["mechanisms/window.py", 5]
    assert measure_structure.closures(tree) == {"imports of window": [2, 3], "imports of linear": [0, 0]}


def test_the_package_may_not_grow_and_its_ceiling_follows(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for ceiling in (11, 12, 511, 512):
        (tree / "pyproject.toml").write_text(f"[tool.hf_longattn.size]\nlines = {ceiling}\n")
        code = measure_structure.main(["--tree", str(tree), "--ceiling"])
        said[ceiling] = code, capsys.readouterr().out
    assert said[12] == said[511] == (0, "")
    assert said[11] == (1, "hf_longattn has 12 lines and may have 11 (pyproject.toml); take out 1\n")
    assert said[512] == (1, "hf_longattn has 12 lines; lower [tool.hf_longattn.size] in pyproject.toml from 512 to that\n")


def test_stays_are_counted_where_the_next_function_is_in_another_file(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        "def outer(other):\n    other.inner()\n    again()\n    [other.inner() for _ in range(2)]\n\ndef again(): pass\n"
    )
    (tmp_path / "two.py").write_text("def inner(): pass\n")
    loaded = []
    for name in ("one", "two"):
        spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(loaded[-1])
    one, two = loaded
    assert measure_structure.visited(lambda: one.outer(two), tmp_path) == [2, 3, 4]
