"""Advice does not contradict itself: what one page recommends, no other warns of, and a measured loss stands beside it.

Recommendations are those of inspect (terminal, JSON), of search, of a plan's warnings, of a conversion's report, of the
documents and of the recipes.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hf_longattn.cli import main
from hf_longattn.search.costs import LayerCost, LayerCosts
from hf_longattn.training.recipes import ready_recipes
from tests.grids import every_other
from tests.test_commands_in_messages import DOCUMENTS, words_of
from tests.trained import REAL_TEXT, tokenizer_of

SHAPE = {"num_hidden_layers": 12, "num_attention_heads": 4, "hidden_size": 16, "intermediate_size": 16, "vocab_size": 200}
STACKS = {"d_model": 16, "vocab_size": 200, **{f"{stack}_{name}": value for stack in ("encoder", "decoder")
                                               for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 16))}}  # fmt: skip
SOURCES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", {**SHAPE, "max_position_embeddings": 514, "pad_token_id": 1}),
    "bert-base": ("BertForMaskedLM", "BertConfig", {**SHAPE, "max_position_embeddings": 512}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_layer": 12, "n_head": 4, "n_embd": 16, "vocab_size": 200, "n_positions": 1024}),
    "bart": ("BartForConditionalGeneration", "BartConfig", {**STACKS, "max_position_embeddings": 1024, "forced_eos_token_id": None}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**SHAPE, "max_position_embeddings": 4096}),
}
"""A checkpoint of the shape of each that documents and recipes convert, by a part of its name."""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path | None]:
    """stand_in("google-bert/bert-base-uncased"): a small checkpoint with its positions; ``None`` for others."""
    folder = tmp_path_factory.mktemp("sources")

    def make(name: str) -> Path | None:
        key = next((key for key in SOURCES if key in name.lower() and "/" not in name.lower().split(key)[1]), None)
        if key is None or "bigbird" in name:
            return None
        if not (folder / key).exists():
            model, config, values = SOURCES[key]
            torch.manual_seed(0)
            getattr(transformers, model)(getattr(transformers, config)(**values)).save_pretrained(folder / key)
        return folder / key

    return make


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """run("plan", …): what the command prints; it must succeed."""

    def call(*words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        assert not ended.value.code, captured.err
        return captured.out

    return call


def warnings_of(run: Callable[..., str], words: list[str]) -> list[str]:
    """What a plan warns of for the words of `longattn convert SRC DST …`."""
    return json.loads(run("plan", words[1], *words[3:], "--json")).get("warnings", [])


# What inspect and search recommend.


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A masked language model of 64 tokens, and a text."""
    folder, tokenizer = tmp_path_factory.mktemp("short"), tokenizer_of("bert", 64)
    torch.manual_seed(0)
    config = transformers.BertConfig(**{**SHAPE, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}, max_position_embeddings=64)
    transformers.BertForMaskedLM(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    (folder / "text.txt").write_text(REAL_TEXT, encoding="utf-8")
    return {"model": folder / "bert", "text": folder / "text.txt"}


WIDTHS = [word for width in (16, 32, 64, 96, 128) for word in ("--candidate", f"window:window={width}")]
BY_CONTENT = ("top_k:num_keys=4", "block_top_k:num_blocks=1,block_size=8", "lsh:bucket_size=8", "full", "bigbird:block_size=4")
CONTENT = [word for name in BY_CONTENT for word in ("--candidate", name)]


@pytest.mark.thorough
def test_plan_does_not_warn_of_what_inspect_chooses(
    short: dict[str, Path], tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["inspect", *short.values(), "--lengths", "64", *WIDTHS, *CONTENT]
    terminal, numbers = run(*line), json.loads(run(*line, "--json"))
    flags = re.search(r"add to longattn convert:\n  (.*)$", terminal, re.M)
    assert flags is not None
    assert flags[1] == shlex.join(numbers["chosen"]["flags"])
    typed = [str(word) for word in ("convert", short["model"], "other", "--max-length", "128")]
    assert not warnings_of(run, [*typed, *shlex.split(flags[1])])
    for one in numbers["candidates"]:  # what is left out is what a plan warns of
        values = one["name"].partition(":")
        given = [word for option in values[2].split(",") if option for word in ("--option", option)]
        assert bool(warnings_of(run, [*typed, "--mechanism", values[0], *given])) == bool(one["untrained_positions"]), one["name"]


@pytest.mark.thorough
def test_plan_does_not_warn_of_what_search_recommends(
    short: dict[str, Path], tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(self: LayerCosts, candidates: Any, progress: Any = None, memory: bool = False) -> dict[str, LayerCost]:
        return {str(one): LayerCost(float(one.options.get("window", 256))) for one in candidates}

    monkeypatch.setattr(LayerCosts, "measure", measure)
    monkeypatch.chdir(tmp_path)
    for candidates in ([], [*WIDTHS, *CONTENT]):
        out = run("search", *short.values(), "--output", f"{len(candidates)}.yaml", "--length", "256", "--budget", "100", *candidates)
        command = re.search(r"^next: (longattn convert .*)$", out, re.M)
        assert command is not None
        assert not warnings_of(run, shlex.split(command[1])[1:])
        assert re.search(r"Without training the held-out loss at 256 tokens is .*: \d\.\d+ → \d\.\d+ nats", " ".join(out.split()))
        assert "left out: " in out
        assert shlex.split(command[1])[3] == "bert-256"
    choice = json.loads(run("plan", short["model"], "--mechanism", "auto", "--max-length", "256", "--budget", "100", "--json"))
    assert "warnings" not in choice
    assert choice["choice"]["loss_change"]["predicted"] > 10


# What a plan and a report recommend.

WIDE = {
    "bert-base": ["--mechanism", "window", "--option", "window=1024"],
    "roberta": ["--mechanism", "block_top_k"],
    "gpt2": ["--mechanism", "full"],
    "bart": ["--mechanism", "longformer", "--option", "window=1024", "--max-decoder-length", "4096"],
    "llama": ["--mechanism", "full", "--positions", "rope:none"],
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", every_other(WIDE))
def test_plan_does_not_warn_of_what_a_warning_advises(name: str, stand_in: Callable[[str], Path], run: Callable[..., str]) -> None:
    source = stand_in(name)
    line = ["convert", str(source), "DST", "--max-length", "16384"]
    (warning,) = warnings_of(run, [*line, *WIDE[name]])
    advised = re.search(r"\((--.*?)\)", warning)
    assert advised is not None
    kept = WIDE[name] if advised[1].startswith("--decoder") else [word for word in WIDE[name] if word in ("--positions", "rope:none")]
    assert not warnings_of(run, [*line, *kept, *shlex.split(advised[1])])


# What documents and recipes recommend.


def conversions() -> Iterator[tuple[str, list[str], str]]:
    """(where, words, the block around them) of every conversion that a document or a recipe names."""
    for path in DOCUMENTS:
        for block in re.findall(r"^```(?:bash)?\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE):
            for line in re.findall(r"^(longattn (?:convert|plan) .*(?:\\\n.*)*)$", block, flags=re.M):
                yield path.name, words_of(line), block
    for name, recipe in ready_recipes().items():
        block = recipe.path.read_text(encoding="utf-8")
        for line in re.findall(r"^# +(longattn convert .*)$", block, flags=re.M):
            yield name, words_of(line), block


@pytest.mark.thorough
def test_plan_warns_of_no_conversion_in_documents_and_recipes(stand_in: Callable[[str], Path | None], run: Callable[..., str]) -> None:
    """Unless the same block trains the result."""
    wrong, seen = [], 0
    warned_by_words: dict[tuple[str, ...], list[str]] = {}  # the same command is in several places, with another destination
    for where, (command, name, *words), block in conversions():
        source = stand_in(name)
        if source is None or "--generic" in words or "auto" in words or "design.yaml" in words:
            continue
        if command == "plan":
            words = ["DST", *words]
        key = (str(source), *words[1:])
        if key not in warned_by_words:
            warnings = warnings_of(run, ["convert", str(source), *words])
            warned_by_words[key] = [one for one in warnings if "scales the rotations of all tokens" not in one]  # a cost
        warned = warned_by_words[key]
        seen += 1
        if warned and "longattn train" not in block:
            wrong.append(f"{where}: {name} {' '.join(words)}: {warned[0]}")
        if warned and where in ready_recipes() and ready_recipes()[where].command == "convert":
            assert "needs training" in block, f"the recipe {where} needs training, which its title does not say"
    assert seen > 12
    assert not wrong, "\n".join(wrong)
