"""Whatever a field of a file holds, every command that reads it says one sentence or gives a result, soon and with
nothing left over."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_longattn.cli import main
from hf_longattn.errors import LongAttentionError, error_line
from hf_longattn.hub import write_model_card
from tests.cases import every_case
from tests.damage import CONVERT, convert, make_checkpoint, refused_or_whole, weights
from tests.hub_server import WRITER, Hub

VALUES: tuple[Any, ...] = (
    5,
    -1,
    1.5,
    10**7,
    10**30,
    True,
    None,
    "x",
    "9" * 30,
    "\ud800",
    [],
    {},
    [["a"]],
    {"a": 5},
    {"a": [{"b": {"c": [1, None, {}]}}]},
)
REPO = "writer/odd"
Command = tuple[str, ...]

CARD: Command = ("card", "MODEL")
"""The card of a folder without one, which a push writes."""
PUSH: Command = ("push", "MODEL", REPO, "--token", WRITER)
INSPECT: Command = ("inspect", "MODEL")
PLAN: Command = ("plan", "MODEL", *CONVERT)
TURN: Command = ("convert", "MODEL", "OUT", *CONVERT)
EXPORT: Command = ("export", "MODEL", "OUT", "--format", "torch")

FILES: dict[tuple[str, str], tuple[Command, ...]] = {
    ("bert", "config.json"): (INSPECT, PLAN, TURN),
    ("llama", "config.json"): (INSPECT, PLAN, TURN),
    ("llama", "model.safetensors.index.json"): (INSPECT, PLAN, TURN),
    ("llama", "generation_config.json"): (TURN,),
    ("bert", "tokenizer_config.json"): (TURN,),
    ("long", "config.json"): (INSPECT, CARD, PUSH),
    ("long", "tokenizer_config.json"): (INSPECT, CARD, PUSH),
    ("long", "conversion_report.json"): (CARD, PUSH),
    ("long", "README.md"): (CARD, PUSH),
}
"""(checkpoint, file in it) -> the commands that read it."""


@pytest.fixture(scope="module")
def wholes() -> Iterator[dict[str, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        made = {name: make_checkpoint(name, place / name) for name in ("bert", "llama")}
        transformers.GenerationConfig(max_length=64).save_pretrained(made["llama"])
        (made["bert"] / "README.md").write_text("---\nlicense: mit\nlanguage: en\ntags: [letters]\n---\n# Short\n")
        assert convert(made["bert"], place / "long", *CONVERT)[0] == 0
        yield {**made, "long": place / "long"}


def run(*arguments: object) -> tuple[int, str]:
    """(exit code, stderr) of a command; every other end than an exit is an error."""

    out = io.StringIO()
    err = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if arguments[0] == CARD[0]:
                write_model_card(str(arguments[1]))
                return 0, ""
            main([str(argument) for argument in arguments])
    except LongAttentionError as error:
        return 1, error_line(error)
    except SystemExit as ended:
        return int(ended.code or 0), err.getvalue()
    raise AssertionError("the command line always ends with an exit code")


def typed(command: Command, model: Path, out: Path) -> list[str]:
    return [{"MODEL": str(model), "OUT": str(out)}.get(word, word) for word in command]


def check(whole: Path, file: str, content: str, commands: tuple[Command, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, command in enumerate(commands):
            model = Path(folder) / f"model{number}"
            out = Path(folder) / f"out{number}"
            shutil.copytree(whole, model)
            (model / file).write_text(content, encoding="utf-8")
            code, err = run(*typed(command, model, out))
            if code:
                assert code == 1, (command, err)
                said = [line for line in err.splitlines() if not line.startswith("The connection")]
                assert len(said) == 1, (command, err)
                assert said[0].startswith("Error: "), err
                assert said[0][-1] in ".?!)'\"", err
                assert not out.exists()
            assert sorted(path.name for path in Path(folder).iterdir() if path.name.startswith(".")) == []


def places(values: Any, depth: int = 2) -> Iterator[tuple[Any, ...]]:
    """The ways to every field of nested JSON."""
    inner = values.items() if isinstance(values, dict) else enumerate(values[:1]) if isinstance(values, list) else ()
    for key, value in inner if depth else ():
        yield (key,)
        yield from ((key, *rest) for rest in places(value, depth - 1))


def changed(values: Any, way: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(values))
    inner = copy
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = value
    return copy


def examples(count: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@pytest.mark.thorough
@every_case("count", [4, pytest.param(60, marks=pytest.mark.slow)])
@every_case(("checkpoint", "file"), FILES, of=3)
def test_commands_refuse_or_take_any_value_of_a_field(
    checkpoint: str, file: str, count: int, wholes: dict[str, Path], server: Hub
) -> None:
    examples(count)(given(data=st.data())(check_an_odd_value))(checkpoint, file, wholes)


def check_an_odd_value(checkpoint: str, file: str, wholes: dict[str, Path], data: st.DataObject) -> None:
    whole = wholes[checkpoint]
    front = file.endswith(".md")
    text = (whole / file).read_text(encoding="utf-8")
    values = yaml.safe_load(text.split("---")[1]) if front else json.loads(text)
    if front:
        values |= {"model-index": [{"name": "x", "results": []}], "base_model": "a/b", "datasets": ["c"]}
    way = data.draw(st.sampled_from([*places(values)]))
    value = data.draw(st.sampled_from(VALUES))
    odd = changed(values, way, value)
    content = f"---\n{json.dumps(odd)}\n---\n# Odd\n" if front else json.dumps(odd)  # JSON is YAML
    check(whole, file, content, FILES[checkpoint, file])


MANY = 1_000_000
LONG = (INSPECT, CARD, EXPORT, PUSH)
HUGE: dict[str, tuple[str, dict[str, Any], tuple[Command, ...]]] = {
    "layers of a long model": ("long", {"num_hidden_layers": MANY}, LONG),
    "a layer's number": (
        "long",
        {"long_attention": {"mechanism": "window", "layers": {str(MANY): {"mechanism": "full"}}}},
        LONG,
    ),
    "numbers in a line": ("long", {"long_attention": {"mechanism": "window", "layers": f"0-{10**9}=full"}}, LONG),
    "times in a line": ("long", {"long_attention": {"mechanism": "window", "layers": f"{10**9}*full"}}, LONG),
    "layers of a short model": ("bert", {"num_hidden_layers": MANY}, (INSPECT, PLAN, TURN)),
    "labels": ("bert", {"num_labels": 10**9}, (INSPECT, PLAN, TURN)),
}


@pytest.mark.parametrize("case", HUGE)
def test_commands_refuse_huge_counts_in_a_config_at_once(case: str, wholes: dict[str, Path], server: Hub) -> None:
    checkpoint, fields, commands = HUGE[case]
    values = json.loads((wholes[checkpoint] / "config.json").read_text())
    check(wholes[checkpoint], "config.json", json.dumps({**values, **fields}), commands)


@pytest.mark.parametrize(
    "flag",
    [
        ["--layers", "0-999999999=full"],
        ["--verify-text", "PIPE"],
        ["--config", "PIPE"],
    ],
)
def test_convert_refuses_huge_flags_and_pipes_at_once(
    flag: list[str], wholes: dict[str, Path], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    code, err = run(
        "convert",
        wholes["bert"],
        tmp_path / "out",
        *(str(tmp_path / "pipe") if word == "PIPE" else word for word in flag),
    )
    assert code in (1, 2), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["README.md", "conversion_report.json", "config.json"])
def test_commands_do_not_open_a_pipe_in_a_checkpoint(
    file: str, wholes: dict[str, Path], tmp_path: Path, server: Hub
) -> None:
    shutil.copytree(wholes["long"], tmp_path / "model")
    (tmp_path / "model" / file).unlink()
    os.mkfifo(tmp_path / "model" / file)
    for command in (CARD, PUSH, INSPECT):
        code, err = run(*typed(command, tmp_path / "model", tmp_path / "out"))
        assert code in (0, 1), err
        assert "Traceback" not in err


@pytest.mark.thorough
@every_case("name", ["overwrite", "source", "verify", "progress", "mechanism", "self", "options", "long_attention"])
def test_convert_takes_no_name_of_an_argument_as_an_option_of_the_mechanism(
    name: str, wholes: dict[str, Path], tmp_path: Path
) -> None:
    for command in (["plan", wholes["bert"]], ["convert", wholes["bert"], tmp_path / "out"]):
        code, err = run(*command, "--mechanism", "window", "--option", f"{name}=1")
        assert code == 1, err
        assert "no option" in err or "not an option" in err, err


def converted_or_refused(whole: Path, damage: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(whole, Path(folder) / "source")
        damage(Path(folder) / "source")
        refused_or_whole(Path(folder) / "source", Path(folder))


@pytest.mark.thorough
@examples(25)
@given(data=st.data())
def test_convert_refuses_or_converts_weights_with_changed_bytes(wholes: dict[str, Path], data: st.DataObject) -> None:
    raw = bytearray(weights(wholes["bert"]).read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    at = data.draw(st.integers(0, header - 1) | st.integers(0, len(raw) - 1))
    new = data.draw(st.binary(max_size=9))
    raw[at : at + data.draw(st.integers(0, 9))] = new
    converted_or_refused(wholes["bert"], lambda source: weights(source).write_bytes(raw))
