"""Flags: every one has an effect, recipes fill them, and wrong input is one sentence."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
import typer
from transformers import BertConfig, BertForMaskedLM

from hf_longattn.cli import app
from hf_longattn.cli.app import hyphenated
from tests.cases import every_case
from tests.cli.test_commands import run
from tests.conversion.conftest import built, checkpoint
from tests.damage import CONVERT, convert, make_checkpoint

__all__ = ["built", "checkpoint"]

# What the places of the arguments are filled with, by the parameter's name; a new argument gets its own name as a
# text.
FIRST = {"convert": "short", "plan": "short"}
VALUES = (
    "",
    "-1",
    "0",
    "1",
    "1000000000000",
    "9" * 400,
    "٣",
    "nan",
    "inf",
    "1e3",
    "x" * 5000,
    "no/such/folder/at/all",
    "FOLDER",
    "PIPE",
    "FILE",
    "window=1",
    "0-999999999=full",
    "..",
    "\udcff",
)
"""Whatever the flag takes: numbers out of range, numbers that are none, paths to nothing, to folders and pipes, and
unknown names."""


def commands(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(names, command) of everything that can be typed."""
    if hasattr(found, "commands"):
        for name, inner in found.commands.items():
            yield from commands(inner, (*path, name))
    else:
        yield path, found


COMMANDS = dict(commands(typer.main.get_command(app)))
FLAGS: list[Any] = [
    pytest.param(path, parameter, id=f"{' '.join(path)} {(*parameter.opts, parameter.name)[0]}")
    for path, command in COMMANDS.items()
    for parameter in command.params
    if parameter.name != "help"
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Names of checkpoints, and of things that are no file to read."""
    root = tmp_path_factory.mktemp("flags")
    make_checkpoint("bert", root / "short")
    assert convert(root / "short", root / "long", *CONVERT)[0] == 0
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")
    (root / "file").write_text("5")
    return {
        "short": str(root / "short"),
        "long": str(root / "long"),
        "FOLDER": str(root / "folder"),
        "PIPE": str(root / "pipe"),
        "FILE": str(root / "file"),
    }


def arguments(path: tuple[str, ...], places: dict[str, str], out: Path, driven: dict[str, str]) -> list[str]:
    """What makes a command run quickly: its places filled, and the quickest format and method."""
    typed: list[str] = []
    for parameter in COMMANDS[path].params:
        if parameter.param_type_name == "argument":
            filled = {
                "source": places["short"],
                "model": places[FIRST.get(path[0], "long")],
                "destination": str(out / "made"),
                "repo": "writer/x",
                "name": "window",
                "text": places["FILE"],
                "image": None,  # with it, flags for texts are refused
            }
            typed += [value] if (value := {**filled, **driven}.get(parameter.name, parameter.name)) is not None else []
    if path[0] == "export":
        typed += ["--format", "torch"]  # which is quicker than ONNX
    if path[0] == "compress":
        typed += ["--method", "bf16"]
    return typed


def check(
    path: tuple[str, ...],
    parameter: Any,
    value: str,
    places: dict[str, str],
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = places.get(value, value)
    typed = [*path, *arguments(path, places, out, {parameter.name: value})]
    if parameter.param_type_name == "option":
        typed += [parameter.opts[0]] if parameter.is_flag else [parameter.opts[0], value]
    here = Path.cwd()
    os.chdir(out)  # where relative paths are made
    try:
        code, _, err = run(capsys, *typed)
    finally:
        os.chdir(here)
    said = [line for line in err.splitlines() if line.strip() and "Warning" not in line]
    assert "Traceback" not in err
    if code == 1:
        assert said, typed
        assert len(said[-1]) > 15, said
        assert len(err) < 3000 + 2 * len(value), err
        assert said[-1].rstrip()[-1] in ".?!)'\"…", said
    elif code == 2:
        assert "Usage" in err or "Error" in err or "error" in err, err
    else:
        assert code == 0, err


def values_of(parameter: Any) -> tuple[str, ...]:
    return ("",) if getattr(parameter, "is_flag", False) else VALUES


@pytest.mark.thorough
@pytest.mark.usefixtures("offline")
@every_case(
    ("path", "parameter"),
    [flag for flag in FLAGS if flag.values[0] not in (("export",), ("compress",))],
    of=4,
    code=lambda path, parameter: path,
)
def test_flag_out_of_its_range_is_a_sentence_or_wrong_usage(
    path: tuple[str, ...], parameter: Any, places: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    """Every flag with one of the values, in turn; quick tests have every fourth flag of each command."""
    turn = [flag.values[:2] for flag in FLAGS].index((path, parameter))
    values = values_of(parameter)
    check(path, parameter, values[turn % len(values)], places, tmp_path, capsys)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the Hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@every_case(
    ("line", "option"),
    [
        ("export {here} out --format torch --opset 20", "--opset"),
        ("export {here} out --format native --opset 20", "--opset"),
        ("export {here} out --format native --task fill-mask", "--task"),
        ("compress {here} out --method int8 --share 0.25", "--share"),
        ("compress {here} out --method bf16 --share 0.5", "--share"),
        ("inspect {here} --queries 1024", "--queries"),
    ],
)
def test_commands_refuse_options_without_effect(
    line: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Even with its default value, and before anything is read or computed."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *shlex.split(line.format(here=tmp_path)))
    assert (code, out) == (2, "")
    assert f"Invalid value for {option}: " in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers for 64 tokens."""
    folder = tmp_path_factory.mktemp("short") / "bert"
    config = BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def test_typed_flags_take_precedence_over_a_recipe(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["--config", "longformer-base-4096"]
    code, out, _ = run(capsys, "plan", short, *recipe, "--max-length", 128, "--option", "window=32", "--json")
    assert code == 0
    plan = json.loads(out)
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
def test_mistakes_in_a_recipe_are_one_sentence(
    text: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = "baesd" if text == "baesd" else tmp_path / ("none.yaml" if text is None else "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(text or "")
    code, _, said = run(capsys, "plan", "somewhere", "--config", recipe)
    assert code == 1
    assert sentence in said
    assert said.startswith("Error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("text", "flag"), [("max_length: many", "--max-length"), ("generic: perhaps", "--generic")])
def test_values_of_a_recipe_are_checked_as_those_of_its_flags(
    text: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    code, _, said = run(capsys, "plan", "somewhere", "--config", tmp_path / "recipe.yaml")
    assert (code, f"Error: Invalid value for '{flag}'" in said) == (2, True)


@pytest.fixture
def source(checkpoint: Callable[..., Path]) -> Path:
    """A BERT of 64 positions and two layers, the test's own."""
    return checkpoint("BertForMaskedLM")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


REQUESTS: dict[str, tuple[list[str], str]] = {
    "unknown mechanism": (["--mechanism", "longfromer"], "Did you mean 'longformer'"),
    "unknown option": (["--mechanism", "window", "--option", "widnow=3"], "Did you mean 'window'"),
    "wrong option type": (["--mechanism", "window", "--option", "window=wide"], "must be int"),
    "impossible option": (["--mechanism", "window", "--option", "window=0"], "must be at least 1"),
    "layer beyond the model": (["--layers", "0-7=full"], "but the model has 2 layers"),
    "unknown mechanism in a layer": (["--layers", "0=windw"], "Did you mean 'window'"),
    "shorter than the source": (["--max-length", "63"], "The source takes 64 tokens"),
    "unknown positions": (["--positions", "tiles", "--max-length", "128"], "Did you mean 'tile'"),
    "rotary positions for a table": (["--positions", "rope:yarn", "--max-length", "128"], "learned position table"),
    "a flag as an option": (["--option", "mechanism=window"], "use --mechanism (in"),
    "another flag as an option": (["--option", "layers=window"], "use --layers (in"),
    "missing verification text": (
        ["--verify-text", "/nowhere/text.txt"],
        "The text '/nowhere/text.txt' cannot be read: No such file",
    ),
}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--window 512", "No such option: --window. An option of a mechanism is typed --option window=VALUE."),
        ("--num-sinks=4", "An option of a mechanism is typed --option num_sinks=VALUE."),
        ("--option window", "'window' must read NAME=VALUE, for example window=512."),
        ("--windows 512", "No such option: --windows"),
    ],
)
def test_convert_names_how_options_of_a_mechanism_are_typed(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "convert", "short", "long", *words.split())
    assert code == 2
    assert sentence in " ".join(err.split())


@every_case("case", REQUESTS)
def test_convert_refuses_bad_requests_writing_nothing(
    case: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, sentence = REQUESTS[case]
    before = contents(source.parent)
    code, out, err = run(capsys, "convert", source, tmp_path / "deep" / "long", *arguments)
    assert code == 1
    assert sentence in err
    assert err.count("\n") == 1
    assert out == ""
    assert contents(source.parent) == before
    assert not (tmp_path / "deep").exists()


@every_case(
    "command",
    ["convert {} {out}", "train mlm --model {} --data {text} --output {out}", "inspect {}", "inspect {} {text}"],
)
def test_commands_refuse_a_missing_model_before_transformers_looks_for_it(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a connection, transformers tries again for half a minute."""
    monkeypatch.setattr(
        transformers.AutoConfig, "from_pretrained", lambda *args, **kwargs: pytest.fail("transformers was asked")
    )
    (tmp_path / "empty").mkdir(exist_ok=True)
    (tmp_path / "text.txt").write_text("A text.")
    for name, sentence in (
        ("someone/bert", "'someone/bert' is not a folder, and it cannot be downloaded"),
        (f"{tmp_path}/empty", "has no config.json"),
        (f"{tmp_path}/none", "There is no folder|does not exist"),
        (f"{tmp_path}/text.txt", "is a file; give the folder"),
    ):
        code, out, err = run(capsys, *command.format(name, text=tmp_path / "text.txt", out=tmp_path / "out").split())
        *_, last = err.splitlines()
        assert (code, out) == (1, "")
        assert re.search(sentence, last)
        assert not (tmp_path / "out").exists()


def test_convert_refuses_an_existing_destination(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long").mkdir()
    code, _, err = run(capsys, "convert", source, tmp_path / "long", *CONVERT)
    assert (code, "already exists" in err) == (1, True)
    assert list((tmp_path / "long").iterdir()) == []


@every_case(
    "arguments",
    [
        ["convert"],
        ["convert", "a", "b", "--option", "window"],
        ["convert", "a", "b", "--layers", "first=window"],
        ["convert", "a", "b", "--max-length", "0"],
        ["convert", "a", "b", "--no-verify", "--verify-text", "c"],
        ["convert", "a", "b", "--unheard-of"],
        ["inspect"],
        ["conjure"],
    ],
    ids=" ".join,
)
def test_wrong_usage_of_a_command_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *arguments)
    assert (code, out) == (2, "")


@every_case(
    ("typed", "read"),
    [
        ("--max_length=512", "--max-length=512"),
        ("--max_length", "--max-length"),
        ("--option=num_sinks=4", "--option=num_sinks=4"),
        ("num_sinks=4", "num_sinks=4"),
        ("my_folder", "my_folder"),
        ("-x_y", "-x_y"),
    ],
)
def test_names_of_options_may_have_underscores_and_values_keep_theirs(typed: str, read: str) -> None:
    assert hyphenated(typed) == read


def test_training_and_conversion_take_underscores(capsys: pytest.CaptureFixture[str]) -> None:
    for line, reason in (
        ("train mlm --batch_size 4 --max_length 64", "No model given"),
        ("convert ./none ./long --max_length 64", "There is no folder './none'"),
    ):
        _, _, err = run(capsys, *line.split())
        assert reason in err, err
