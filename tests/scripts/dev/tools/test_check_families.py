"""The table of families: a result in every cell, stored as it comes, and a run that was ended resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.dev.benchmarks.report import stored_study
from scripts.dev.tools import check_families
from scripts.dev.tools.small_models import OF_EACH_KIND


def stored(folder: Path) -> Any:
    return stored_study(folder / "families")["families"]


@pytest.mark.thorough
def test_family_is_checked_stored_and_not_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(check_families.CHECKS, "export", lambda subject: "one graph")  # seconds; the slow tests run it
    assert check_families.main(["llama", "--output", str(tmp_path)]) == 0
    cells = stored(tmp_path)["llama"]["cells"]
    assert {*cells} == {*check_families.CHECKS}
    assert {cell["status"] for cell in cells.values()} == {"passed"}
    text = (tmp_path / "families.md").read_text(encoding="utf-8")
    assert "| `llama` | text | `LlamaForCausalLM` |" in text

    def unexpected(*_: object) -> str:
        raise AssertionError("checked again")

    for name in check_families.CHECKS:
        monkeypatch.setitem(check_families.CHECKS, name, unexpected)
    assert check_families.main(["llama", "--output", str(tmp_path)]) == 0


def test_failed_check_of_a_family_is_a_sentence_in_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such\nshape")

    monkeypatch.setattr(check_families, "small_config_of", broken)
    assert check_families.main(["bert", "--output", str(tmp_path)]) == 1
    cells = stored(tmp_path)["bert"]["cells"]
    assert cells["convert"] == {"status": "failed", "detail": "RuntimeError: no such shape"}
    assert {*cells} == {*check_families.CHECKS}


@pytest.mark.slow
@pytest.mark.parametrize("base", OF_EACH_KIND)
def test_family_of_each_kind_passes_every_check(base: str, tmp_path: Path) -> None:
    assert check_families.main([base, "--output", str(tmp_path)]) == 0, stored(tmp_path)[base]
