"""Recipes: what their comments say, and their commands as they stand there, with tiny checkpoints and data under the
names of the Hub.

Only sizes are overridden: ``SIZES`` for conversions, ``STEPS`` and ``LENGTHS`` for trainings.
"""

from __future__ import annotations

import importlib
import json
import random
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoConfig, PreTrainedTokenizerBase

from hf_longattn.cli import main
from hf_longattn.training.recipes import CONFIGS, Recipe, read_recipe, ready_recipes
from scripts.dev.tools.small_models import Shape, language_model, small_config, small_values
from tests.cases import every_case
from tests.cli.test_commands import output, run

READY = ready_recipes()
TRAININGS = {name: recipe for name, recipe in READY.items() if recipe.command.startswith("train")}


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
    steps = [
        shlex.split(command) for command in before if not command.startswith(("longattn recipes", "python scripts/"))
    ]
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


def test_longattn_recipes_prints_the_list_and_one_recipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = output(capsys, "recipes")
    assert max(map(len, listed.splitlines())) <= 80
    assert {word for one in READY.values() for word in (*one.command.split(), one.name, *one.title.split())} <= {
        *listed.split()
    }
    assert output(capsys, "recipes", "fsdp2") == (CONFIGS / "accelerate" / "fsdp2.yaml").read_text()


def test_ready_recipe_of_another_task_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, error = run(capsys, "train", "clm", "--config", "longformer-triviaqa")
    assert "The recipe 'longformer-triviaqa' is for longattn train qa; give another one" in error


def test_read_recipe_takes_the_path_of_a_file(repository: Path) -> None:
    """`--config configs/based.yaml`, typed in a checkout."""
    assert repository / "configs" == CONFIGS
    assert read_recipe(repository / "configs" / "based.yaml") == read_recipe("based")


# Checkpoints, by their names on the Hub

CHECKPOINTS = {
    "FacebookAI/roberta-base": ("roberta", 64),
    "allenai/longformer-base-4096": ("longformer", 512),
    "google/bigbird-roberta-base": ("big_bird", 512),
    "facebook/bart-base": ("bart", 1024),
    "facebook/bart-large": ("bart", 1024),
    "google/pegasus-large": ("pegasus", 1024),
    "meta-llama/Meta-Llama-3-8B": ("llama", 512),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama", 512),
    "openai-community/gpt2-medium": ("gpt2", 512),
}
"""Architecture, and tokens that it reads."""


def save_checkpoint(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """A tiny checkpoint of the same architecture, in the folder of its name."""
    base, length = CHECKPOINTS[name]
    first, end, padding = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    values = {
        "pad_token_id": padding,
        "bos_token_id": first,
        "eos_token_id": end,
        "sep_token_id": end,
        "decoder_start_token_id": padding if base == "pegasus" else end,
        "forced_eos_token_id": end,
        "block_size": 16,
        "rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"},
    }
    shape = Shape(width=16, heads=2, inner=32, tokens=length, vocabulary=len(tokenizer))
    torch.manual_seed(0)
    if base == "longformer":  # a RoBERTa with windows
        config = transformers.LongformerConfig(**small_values("roberta", shape, **values), attention_window=[16, 16])
        model = transformers.LongformerForMaskedLM(config)
    else:
        model = getattr(transformers, language_model(base))(small_config(base, shape, **values))
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)


# Data, by their names on the Hub and with their columns

WORDS = ["the", "tree", "file", "number", "of", "a", "loop", "value"]


def words(count: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def trivia(number: int) -> dict[str, Any]:
    text = f"{words(30, number)} Mount Etna erupted. {words(200, number + 1)}"
    pages = {"filename": ["Etna.txt"], "title": ["Etna"], "wiki_context": [text]}
    nothing: dict[str, list[Any]] = {"filename": [], "title": [], "search_context": []}
    answer = {"aliases": ["Etna"], "normalized_aliases": ["mount etna", "etna"], "value": "Mount Etna"}
    about = {"question": "Which mountain erupted?", "question_id": f"tc_{number}"}
    return {**about, "entity_pages": pages, "search_results": nothing, "answer": answer}


def natural(number: int) -> dict[str, Any]:
    tokens = ["<P>", *words(40, number).split(), "Paris", "is", "large", "</P>"]
    place = tokens.index("Paris")
    shorts: dict[str, list[Any]] = {"start_token": [place], "end_token": [place + 1]}
    if number % 3 == 0:
        shorts = {"start_token": [], "end_token": []}
    return {
        "id": str(number),
        "document": {
            "title": "Paris",
            "tokens": {"is_html": [token.startswith("<") for token in tokens], "token": tokens},
        },
        "question": {"text": "which city is large"},
        "annotations": {"short_answers": [shorts], "yes_no_answer": [-1 if number % 3 else 1]},
    }


def paper(number: int) -> dict[str, Any]:
    return {"article": words(100, number), "abstract": words(8, number)}


def alpaca(number: int) -> dict[str, Any]:
    return {
        "output": words(30, number),
        "input": words(5, number) if number % 2 else "",
        "instruction": words(10, number),
    }


def review(number: int) -> dict[str, Any]:
    return {"text": words(60, number), "label": number % 2}


def book(number: int) -> dict[str, Any]:
    return {"short_book_title": "A", "publication_date": 1900, "url": "u", "text": words(900, number)}


def article(number: int) -> dict[str, Any]:
    return {"id": str(number), "url": "u", "title": "A", "text": words(300, number)}


def web(number: int) -> dict[str, Any]:
    return {"text": words(300, number), "id": "u", "language": "en", "score": 3.0}


IMDB = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
SUBJECTS = ["math.AC", "cs.CV", "cs.AI", "cs.SY", "math.GR", "cs.CE", "cs.PL", "cs.IT", "cs.DS", "cs.NE", "math.ST"]
DATA: dict[str, tuple[Callable[[int], dict[str, Any]], tuple[str, ...], Features | None]] = {
    "mandarjoshi/trivia_qa:rc.wikipedia": (trivia, ("train", "validation", "test"), None),
    "google-research-datasets/natural_questions": (natural, ("train", "validation"), None),
    "stanfordnlp/imdb": (review, ("train", "test", "unsupervised"), IMDB),
    "ccdv/arxiv-classification": (
        review,
        ("train", "validation", "test"),
        Features({"text": Value("string"), "label": ClassLabel(names=SUBJECTS)}),
    ),
    "ccdv/arxiv-summarization:document": (paper, ("train", "validation", "test"), None),
    "ccdv/pubmed-summarization:document": (paper, ("train", "validation", "test"), None),
    "yahma/alpaca-cleaned": (alpaca, ("train",), None),
    "emozilla/pg19": (book, ("train", "validation", "test"), None),
    "wikimedia/wikipedia:20231101.en": (article, ("train",), None),
    "HuggingFaceFW/fineweb-edu:sample-10BT": (web, ("train",), None),
}


def save_data(name: str) -> None:
    """A few rows with the columns of a dataset, in the folder of its name."""
    row, splits, features = DATA[name]
    DatasetDict(
        {split: Dataset.from_list([row(number) for number in range(8)], features=features) for split in splits}
    ).save_to_disk(name)


# Sizes

SIZES = {
    "FacebookAI/roberta-base": "--max-length 256 --option window=32",
    "facebook/bart-large": "--max-length 2048",
    "facebook/bart-base": "--max-length 2048 --max-decoder-length 2048",
    "google/pegasus-large": "--max-length 2048",
    "meta-llama/Meta-Llama-3-8B": "--max-length 512",
    "meta-llama/Meta-Llama-3-8B-Instruct": "--max-length 1024",
    "openai-community/gpt2-medium": "--max-length 768",
}
"""Overrides of a conversion, by its source."""
STEPS = """--bf16 false --disable-tqdm true --per-device-eval-batch-size 4 --batch-size 2
    --gradient-accumulation-steps 1 --max-steps 2
    --save-strategy no"""
LENGTHS = {
    "train qa": "--max-length 256",
    "train classify": "--max-length 128",
    "train mlm": "--max-length 256",
    "train clm": "--max-length 128 --max-eval-samples 2",
    "train seq2seq": "--max-length 128 --max-target-length 8 --generation-num-beams 2",
    "train linearise": "--max-length 128 --max-eval-samples 2",
}
"""Overrides of a training."""


def typed(command: str, further: str = "") -> None:
    """Run a command of a header; ``accelerate launch`` as one process."""
    words = shlex.split(command)
    words = words[words.index("hf_longattn" if "hf_longattn" in words else "longattn") + 1 :]
    with pytest.raises(SystemExit) as stopped:
        main([*words, *shlex.split(further)])
    assert stopped.value.code == 0, command


QUICK = ("longformer-triviaqa", "prolong-64k")
"""One for labelled data and one with all kinds of commands; the others are slow tests."""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TRAININGS]
)
def test_each_recipe_runs_as_typed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, values = ready_recipes()[name], read_recipe(name)
    typed_lines = commands(recipe)
    source = shlex.split(typed_lines[0])[2]
    save_checkpoint(source, tokenizer)
    named = values["data"]
    for data in [named] if isinstance(named, str) else named:
        if data in DATA:
            save_data(data)
    shared = "--stride 32" if "stride" in values else ""
    for command in typed_lines:
        _, action, start, *further = shlex.split(command)
        if (training := re.search(r" train (\w+) ", command)) is not None:
            typed(command, f"{STEPS} {LENGTHS[f'train {training[1]}']} {shared}")
        elif action.startswith("scripts/"):  # which writes a dataset in the common schema
            save_data(start)
            importlib.import_module(action.removesuffix(".py").replace("/", ".")).main([start, *further])
        elif action != "recipes":  # which prints a config of accelerate
            typed(command, SIZES.get(start, ""))
    assert AutoConfig.from_pretrained(name).model_type.startswith("long_")
    assert (
        json.loads(Path(name, "training_log.json").read_text())["settings"]["model"]
        in typed_lines[-1] + values["model"]
    )
