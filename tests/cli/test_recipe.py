"""`--config RECIPE` of conversions: by name or as a file; what is typed takes precedence; mistakes are one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

from hf_longattn.cli import main
from hf_longattn.training.recipes import ready_recipes
from tests.cases import every_case

RECIPES = [name for name, recipe in ready_recipes().items() if recipe.command == "convert"]
SIZES = {"vocab_size": 50, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A BERT and, for rotary recipes, a Llama; next to them a BERT of twelve layers, "deep"."""
    folder = tmp_path_factory.mktemp("sources")
    BertForMaskedLM(BertConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=64)).save_pretrained(folder / "bert")
    BertForMaskedLM(BertConfig(**SIZES, num_hidden_layers=12, max_position_embeddings=64)).save_pretrained(folder / "deep")
    LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=1, max_position_embeddings=8192)).save_pretrained(folder / "llama")
    return {False: folder / "bert", True: folder / "llama"}


def planned(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *map(str, arguments), "--json"])
    assert stopped.value.code == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.thorough
@every_case("recipe", RECIPES, of=2)
def test_every_ready_recipe_of_a_conversion_gives_plan(recipe: str, sources: dict[bool, Path], capsys: pytest.CaptureFixture[str]) -> None:
    values = yaml.safe_load(ready_recipes()[recipe].path.read_text())
    source = sources["rope" in values.get("positions", "")]
    if recipe == "longformer-growing-windows":  # which names layers up to the twelfth
        source = source.parent / "deep"
    if "image_size" in values:
        ViTModel(ViTConfig(**{**SIZES, "num_hidden_layers": 12})).save_pretrained(source := source.parent / "vit")
    plan = planned(capsys, source, "--config", recipe)
    if "image_size" in values:
        assert plan["new_image_size"] == [int(values["image_size"])] * 2
    else:
        assert plan["new_length"] == values["max_length"]
    assert plan["positions"] == values.get("positions", "tile")
    assert plan["long_attention"]["mechanism"] == values["mechanism"]
    assert len(plan["long_attention"].get("layers", {})) == {"longformer-growing-windows": 8, "based": 1, "vitdet": 4}.get(recipe, 0)


def test_typed_flags_take_precedence_over_a_recipe(sources: dict[bool, Path], capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, sources[False], "--config", "longformer-base-4096", "--max-length", 128, "--option", "window=32")
    assert plan["new_length"] == 128
    assert plan["long_attention"]["window"] == 32


@every_case(
    ("text", "sentence"),
    [
        ("mechanism: [", "cannot be read"),
        ("just words", "names and values"),
        ("mechansm: window", "Did you mean 'mechanism'?"),
        ("maximum-length: 7", "sets 'maximum_length'"),
        ("mechanism: [window]", "sets 'mechanism' to ['window']; it must be a single value"),
        ("option: window=8", "sets 'option' to 'window=8'; it must be a list"),
        (None, "does not exist"),
        ("baesd", "There is no recipe 'baesd'"),
    ],
)
def test_mistakes_in_a_recipe_are_one_sentence(text: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "baesd" if text == "baesd" else tmp_path / ("none.yaml" if text is None else "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(text or "")
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "somewhere", "--config", str(recipe)])
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("Error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("text", "flag"), [("max_length: many", "--max-length"), ("generic: perhaps", "--generic")])
def test_values_of_a_recipe_are_checked_as_those_of_its_flags(
    text: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "somewhere", "--config", str(tmp_path / "recipe.yaml")])
    assert stopped.value.code == 2
    assert f"Error: Invalid value for '{flag}'" in capsys.readouterr().err
