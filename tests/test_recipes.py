"""Every recipe says where its values come from, and its commands are those of the command line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hf_longattn.cli import main
from hf_longattn.errors import LongAttentionError
from hf_longattn.training.recipes import CONFIGS, read_recipe, ready_recipes
from tests.cases import every_case

READY = ready_recipes()
TRAININGS = {name: recipe for name, recipe in READY.items() if recipe.command.startswith("train")}


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 0
    return capsys.readouterr().out


@every_case("name", TRAININGS)
def test_recipes_of_trainings_say_what_was_published(name: str) -> None:
    recipe = TRAININGS[name]
    about = recipe.entries
    assert recipe.path.parent.name == "recipes"
    assert set(about) == {"title", "paper", "score", "base", "hardware", "differs", "commands"}
    assert re.search(r"\b20\d\d\b", about["paper"])
    assert re.search(r"\d", about["score"])
    assert all(about.values())


@every_case("name", TRAININGS)
def test_commands_of_a_recipe_lead_from_one_to_the_next(name: str) -> None:
    values = read_recipe(name)
    *before, last = TRAININGS[name].entries["commands"].splitlines()
    steps = [shlex.split(command) for command in before if not command.startswith(("longattn recipes", "python scripts/"))]
    assert [step[:2] for step in steps] == [["longattn", "convert"]]
    assert steps[0][2] in TRAININGS[name].entries["base"]
    assert steps[-1][3] == values["model"]
    assert last.endswith(f"{TRAININGS[name].command} --config {name}")
    assert values["output_dir"] == name
    launched = re.search(r"--config_file (\w+).yaml", last)
    if launched:
        assert before[-1] == f"longattn recipes {launched[1]} > {launched[1]}.yaml"
        assert READY[launched[1]].command == "accelerate launch"


@every_case("name", [name for name, recipe in READY.items() if recipe.command == "convert"])
def test_recipes_of_conversions_say_what_to_type(name: str) -> None:
    assert f"--config {name}" in READY[name].entries["commands"]
    assert READY[name].entries["title"]


def test_longattn_recipes_prints_the_list_and_one_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = told(capsys, "recipes")
    assert max(map(len, listed.splitlines())) <= 80
    assert {word for one in READY.values() for word in (*one.command.split(), one.name, *one.entries["title"].split())} <= {*listed.split()}
    assert told(capsys, "recipes", "fsdp2") == (CONFIGS / "accelerate" / "fsdp2.yaml").read_text()


def test_longattn_recipes_suggests_a_name_for_an_unknown_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["recipes", "longformer-trivia"])
    assert "Did you mean 'longformer-triviaqa'?" in capsys.readouterr().err


def test_read_recipe_refuses_a_recipe_of_another_command() -> None:
    with pytest.raises(LongAttentionError, match="'longformer-triviaqa' is for `train qa`, not for `convert`"):
        read_recipe("longformer-triviaqa", [], "convert")
    with pytest.raises(LongAttentionError, match="'based' is for `convert`, not for `train clm`"):
        read_recipe("based", [], "train clm")
    assert read_recipe("longformer-triviaqa", command="train qa")["learning_rate"] == 3e-5


def test_read_recipe_takes_the_path_of_a_file(repository: Path) -> None:
    """`--config configs/based.yaml`, typed in a checkout."""
    assert repository / "configs" == CONFIGS
    assert read_recipe(repository / "configs" / "based.yaml") == read_recipe("based")
