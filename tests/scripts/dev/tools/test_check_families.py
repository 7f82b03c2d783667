"""The table of families: a result in every cell, stored as it comes, and a run that was ended resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.dev.tools import check_families, family_checkpoints, picture_families
from scripts.dev.tools.run_transformers_tests import stored_suite
from scripts.dev.tools.small_models import TEXT_FAMILIES


def stored(folder: Path) -> dict:
    return json.loads((folder / "families.json").read_text(encoding="utf-8"))["families"]


@pytest.mark.usefixtures("warm_commands")
def test_one_family_is_checked_stored_and_not_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_checkpoints, "LENGTH", 64)
    monkeypatch.setattr(family_checkpoints, "SHAPE", replace(family_checkpoints.SHAPE, layers=1))
    for name in ("compile", "export"):  # seconds each; the slow tests run them for every family, and other rooms for some
        monkeypatch.setattr(check_families.family_checks.Subject, name, lambda self: "one graph")
    assert check_families.main(["llama", "--output", str(tmp_path)]) == 0
    cells = stored(tmp_path)["llama"]["cells"]
    assert [name for name in check_families.TITLES if name != "model_tester"] == sorted(cells, key=list(check_families.TITLES).index)
    assert {cell["status"] for cell in cells.values()} == {"passed"}
    assert all(cell["detail"] for cell in cells.values())
    text = (tmp_path / "families.md").read_text(encoding="utf-8")
    assert "| `llama` | decoder |" in text
    assert "not run: python -m scripts.dev.tools.run_transformers_tests llama" in text

    def unexpected(*_: object) -> None:
        raise AssertionError("checked again")

    monkeypatch.setattr(check_families.family_checks.Subject, "run", unexpected)
    assert check_families.main(["llama", "--output", str(tmp_path)]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("warm_commands")
def test_a_family_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compile", "export"):
        monkeypatch.setattr(picture_families.PictureSubject, name, lambda self: "one graph")
    assert check_families.main(["vit", "siglip2_vision_model", "--output", str(tmp_path)]) == 0
    cells = stored(tmp_path)
    assert {name for name, cell in cells["vit"]["cells"].items() if cell["status"] == "not applicable"} == {"generate"}
    assert {name for name, cell in cells["siglip2_vision_model"]["cells"].items() if cell["status"] == "passed"} == {
        "old_length", "save_load", "lora", "compile", "export"
    }  # fmt: skip
    assert "| `vit` | pictures |" in (tmp_path / "families.md").read_text(encoding="utf-8")


def test_what_fails_is_a_sentence_in_its_cell_and_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such\nshape")

    monkeypatch.setattr(family_checkpoints, "config_of", broken)
    assert check_families.main(["bert", "--output", str(tmp_path)]) == 1
    cells = stored(tmp_path)["bert"]["cells"]
    assert cells["convert"] == {"status": "failed", "detail": "RuntimeError: no such shape"}
    assert {*cells, "model_tester"} == set(check_families.TITLES)


def test_the_stored_page_says_what_the_results_say() -> None:
    results = json.loads((check_families.RESULTS / "families.json").read_text(encoding="utf-8"))
    page = (check_families.RESULTS / "families.md").read_text(encoding="utf-8")
    assert page == check_families.markdown(results, stored_suite(check_families.RESULTS, results["transformers"]))


@pytest.mark.slow
@pytest.mark.parametrize("base", [*TEXT_FAMILIES, *picture_families.PICTURE_FAMILIES])
def test_every_family(base: str, tmp_path: Path) -> None:
    assert check_families.main([base, "--output", str(tmp_path)]) == 0, stored(tmp_path)[base]
