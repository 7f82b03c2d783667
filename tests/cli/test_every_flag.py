"""Every flag of every command, driven out of its range: a sentence and exit code 1, wrong usage and 2, or a result and 0; nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import typer

from hf_longattn.cli import app, main
from tests.cases import every_case

from ..damage import CONVERT, convert, make_checkpoint

SECONDS = 120
"""After which a run counts as hanging; each takes seconds at most."""

# What the places of the arguments are filled with, by the parameter's name; a new argument gets its own name as a text.
FIRST = {"convert": "short", "plan": "short"}
VALUES = (
    "", "-1", "0", "1", "1000000000000", "9" * 400, "٣", "nan", "inf", "1e3", "x" * 5000, "no/such/folder/at/all", "FOLDER", "PIPE", "FILE",
    "window=1", "0-999999999=full", "..", "\udcff",
)  # fmt: skip
"""Whatever the flag takes: numbers out of range, numbers that are none, paths to nothing, to folders and pipes, and unknown names."""


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


class Hangs(BaseException):
    """Nothing catches it."""


def run(typed: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    def late(number: int, frame: FrameType | None) -> None:
        raise Hangs(" ".join(typed)[:300])

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with pytest.raises(SystemExit) as ended:
            main(typed)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    found = capsys.readouterr()
    code = ended.value.code or 0
    assert isinstance(code, int)
    return code, found.out, found.err


def check(path: tuple[str, ...], parameter: Any, value: str, places: dict[str, str], out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = places.get(value, value)
    typed = [*path, *arguments(path, places, out, {parameter.name: value})]
    if parameter.param_type_name == "option":
        typed += [parameter.opts[0]] if parameter.is_flag else [parameter.opts[0], value]
    here = Path.cwd()
    os.chdir(out)  # where relative paths are made
    try:
        code, _, err = run(typed, capsys)
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
    """Every fourth flag of each command with one of the values, in turn; :func:`test_every_odd_value_of_a_flag_is_a_sentence` has all."""
    turn = [flag.values[:2] for flag in FLAGS].index((path, parameter))
    values = values_of(parameter)
    check(path, parameter, values[turn % len(values)], places, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("path", "parameter"), FLAGS)
def test_every_odd_value_of_a_flag_is_a_sentence(
    path: tuple[str, ...], parameter: Any, places: dict[str, str], tmp_path_factory: Any, capsys: Any
) -> None:
    values = values_of(parameter)
    for value in values if path != ("export",) else values[::6]:  # each of which takes a quarter of a minute
        check(path, parameter, value, places, tmp_path_factory.mktemp("out"), capsys)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the Hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
