"""The faults that the quick tests are known to catch can be planted."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomllib

from scripts.dev.tools.mutations import FAULTS, ROOT, Fault, caught

PLANTED = [Fault(**values) for values in tomllib.loads(FAULTS.read_text(encoding="utf-8"))["fault"]]


def test_every_planted_fault_fits_its_file() -> None:
    assert len({fault.name for fault in PLANTED}) == len(PLANTED) >= 30
    for fault in PLANTED:
        assert fault.planted((ROOT / fault.file).read_text(encoding="utf-8")).count(fault.new)
        assert all((ROOT / test).exists() for test in fault.tests), fault.name


def test_planted_fault_is_caught_or_not(tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "test_sums.py").write_text("from sums import add\n\n\ndef test_add():\n    assert add(2, 2) == 4\n")
    for new, outcome in (("a - b", True), ("a * b", False)):
        assert caught(Fault("sums", "sums.py", "a + b", new, ["test_sums.py"]), tmp_path) == outcome
    assert "a + b" in (tmp_path / "sums.py").read_text()
    with pytest.raises(SystemExit, match="0 times"):
        caught(Fault("sums", "sums.py", "a / b", "a", ["test_sums.py"]), tmp_path)
