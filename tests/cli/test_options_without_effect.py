"""Options that would have no effect are refused by name, and a file that exists is never written over."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.models import OptionInfo

from hf_longattn.cli import app, main
from tests.cases import every_case

READ = {"--results", "--text"}
"""Options that name a file or folder to read, with --search-… and --verify-…."""
FOLDERS = {"embed --output", "search --output"}
"""Options that name a folder to write, which is refused where these commands are tested."""


def options_with_paths() -> Iterator[str]:
    """ "inspect --plot" and all others that take a path."""
    for command in app.registered_commands:
        assert command.callback is not None
        for name, parameter in inspect.signature(command.callback, eval_str=True).parameters.items():
            kind, about = (*get_args(parameter.annotation), None, None)[:2]
            if Path in (kind, *get_args(kind)) and isinstance(about, OptionInfo):
                yield f"{command.name or command.callback.__name__} --{name.replace('_', '-')}"


def written() -> set[str]:
    """Of these, those that name a file to write."""
    flags = {option: option.split()[1] for option in options_with_paths()}
    return {option for option, flag in flags.items() if flag not in READ and not flag.startswith(("--search-", "--verify-"))} - FOLDERS


BEFORE = {"inspect": "{here}"}
"""The arguments of the commands that write files, in a folder without a model."""


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line))
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.mark.thorough
@pytest.mark.parametrize("option", sorted(written()))
def test_commands_do_not_write_over_a_file_that_exists(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the plot extra")
    (tmp_path / "text.txt").write_text("A text.")
    (tmp_path / "mine.png").write_text("mine")
    command, flag = option.split()
    code, out, err = run(capsys, f"{command} {BEFORE[command].format(here=tmp_path)} {flag} {tmp_path / 'mine.png'}")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "mine.png' already exists; choose another file" in err
    assert (tmp_path / "mine.png").read_text() == "mine"


@every_case(
    ("line", "option"),
    [
        ("export {here} out --format torch --opset 20", "--opset"),
        ("export {here} out --format native --opset 20", "--opset"),
        ("export {here} out --format native --task fill-mask", "--task"),
        ("compress {here} out --method int8 --share 0.25", "--share"),
        ("compress {here} out --method bf16 --share 0.5", "--share"),
        ("inspect {here} --queries 1024", "--queries"),
        ("inspect {here} text.txt --plot here.png", "--plot"),
    ],
)
def test_commands_refuse_options_without_effect(
    line: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Even with its default value, and before anything is read or computed."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, line.format(here=tmp_path))
    assert (code, out) == (2, "")
    assert f"Invalid value for {option}: " in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []
