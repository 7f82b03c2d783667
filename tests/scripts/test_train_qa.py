"""scripts/train_qa.py: recipes, overrides, and one sentence for what is wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_qa", repository / "scripts" / "train_qa.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mistakes_are_one_sentence(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("learning_rat: 1\n")
    assert script.main(["--config", str(recipe)]) == 1
    assert "Did you mean 'learning_rate'?" in capsys.readouterr().err
    assert script.main(["--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml does not exist; give a YAML file" in capsys.readouterr().err
    assert script.main(["--model", str(tmp_path), "--output", str(tmp_path / "o"), "--data", "program"]) == 1
    assert capsys.readouterr().err.count("Error: ") == 1


def test_reference_tasks_are_trained_by_research(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts.dev.studies import qa_finetune

    given: list[list[str]] = []
    monkeypatch.setattr(qa_finetune, "main", lambda arguments: given.append(arguments) or 0)
    assert script.main(typed := ["--data", "mine.json", "lookup", "--model", "m"]) == 0
    assert given == [typed]
    assert script.main(["--model", "lookup", "--data", "mine.json"]) == 1  # a folder's name
    assert len(given) == 1
