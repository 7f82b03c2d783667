"""Every recipe says where its values come from, and its commands are those of the command line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hf_longattn.cli import main
from hf_longattn.training.recipes import CONFIGS, Recipe, read_recipe, ready_recipes, recipe_words
from tests.cases import every_case

READY = ready_recipes()
TRAININGS = {name: recipe for name, recipe in READY.items() if recipe.command.startswith("train")}


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 0
    return capsys.readouterr().out


def commands(recipe: Recipe) -> list[str]:
    """What the comment of a recipe says to type."""
    return re.findall(r"^#   (.*)$", recipe.path.read_text(encoding="utf-8").partition("# Commands:")[2], re.MULTILINE)


@every_case("name", TRAININGS)
def test_recipes_of_trainings_say_what_was_published(name: str) -> None:
    text = TRAININGS[name].path.read_text(encoding="utf-8")
    assert TRAININGS[name].path.parent.name == "recipes"
    assert all(f"\n# {entry}: " in text for entry in ("Paper", "Score", "Base", "Hardware", "Differs"))


@every_case("name", TRAININGS)
def test_commands_of_a_recipe_lead_from_one_to_the_next(name: str) -> None:
    values = read_recipe(name)
    trainings = [command for command in commands(TRAININGS[name]) if f" --config {name}" in command]
    before = [command for command in commands(TRAININGS[name]) if command not in trainings]
    steps = [shlex.split(command) for command in before if not command.startswith(("longattn recipes", "python scripts/"))]
    assert [step[:2] for step in steps] == [["longattn", "convert"]]
    assert steps[-1][3] == values["model"]
    assert f"{TRAININGS[name].command} --config {name}" in trainings[0]
    assert values["output_dir"] == name
    launched = re.search(r"--config_file (\w+).yaml", trainings[-1])
    if launched:
        assert before[-1] == f"longattn recipes {launched[1]} > {launched[1]}.yaml"
        assert READY[launched[1]].command == "accelerate launch"


@every_case("name", [name for name, recipe in READY.items() if recipe.command == "convert"])
def test_recipes_of_conversions_say_what_to_type(name: str) -> None:
    assert any(f"--config {name}" in command for command in commands(READY[name]))
    assert READY[name].title


def test_longattn_recipes_prints_the_list_and_one_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = told(capsys, "recipes")
    assert max(map(len, listed.splitlines())) <= 80
    assert {word for one in READY.values() for word in (*one.command.split(), one.name, *one.title.split())} <= {*listed.split()}
    assert told(capsys, "recipes", "fsdp2") == (CONFIGS / "accelerate" / "fsdp2.yaml").read_text()


def test_longattn_recipes_suggests_a_name_for_an_unknown_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["recipes", "longformer-trivia"])
    assert "Did you mean 'longformer-triviaqa'?" in capsys.readouterr().err


def test_words_of_a_recipe_are_values_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "model: 5\noutput: 2026-01-01\ndata: [a, b]\nlearning-rate: 3e-5\nmax_length:\nlr_scheduler_kwargs: {power: 2.0}\neval_strategy: no"
    )
    line = '--model 5 --output 2026-01-01 --data a b --learning_rate 3e-5 --lr_scheduler_kwargs {"power":2.0} --eval_strategy no'
    assert [word.replace(": ", ":") for word in recipe_words(str(tmp_path / "r.yaml"))] == line.split()


def test_ready_recipe_of_another_task_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "clm", "--config", "longformer-triviaqa"])
    assert "The recipe 'longformer-triviaqa' is for longattn train qa; give another one" in capsys.readouterr().err


def test_read_recipe_takes_the_path_of_a_file(repository: Path) -> None:
    """`--config configs/based.yaml`, typed in a checkout."""
    assert repository / "configs" == CONFIGS
    assert read_recipe(repository / "configs" / "based.yaml") == read_recipe("based")
