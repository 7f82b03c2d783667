"""scripts/train_qa.py: recipes, overrides, and one sentence for what is wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from hf_longattn.training.settings import parse_settings
from research.qa_settings import QASettings


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_qa", repository / "scripts" / "train_qa.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("recipe", ["qa_reference_512", "qa_long_8192"])
def test_the_shipped_recipes_are_valid(recipe: str, script: ModuleType, repository: Path) -> None:
    settings = parse_settings(
        QASettings, ["--config", str(repository / "research" / "configs" / f"{recipe}.yaml"), "--model", "m", "--output", "o"], ""
    )
    settings.check()
    assert settings.model == "m"
    assert settings.learning_rate < 1e-2
    assert isinstance(settings.max_minutes, float | int)


def test_the_command_line_wins_over_the_recipe(script: ModuleType, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: a\noutput: b\nlearning_rate: 1.0e-4\ncrop: [100, 200]\nrandom_positions: false\n")
    settings = parse_settings(QASettings, ["--config", str(recipe), "--model", "c", "--max-steps", "7"], "")
    assert (settings.model, settings.output, settings.max_steps) == ("c", "b", 7)
    assert (settings.learning_rate, settings.crop, settings.random_positions) == (1e-4, [100, 200], False)


def test_mistakes_are_one_sentence(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("learning_rat: 1\n")
    assert script.main(["--config", str(recipe)]) == 1
    assert "Did you mean 'learning_rate'?" in capsys.readouterr().err
    assert script.main(["--config", str(tmp_path / "none.yaml")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert script.main(["--model", str(tmp_path), "--output", str(tmp_path / "o"), "--data", "docstring"]) == 1
    assert capsys.readouterr().err.count("error: ") == 1
