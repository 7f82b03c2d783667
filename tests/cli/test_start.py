"""What a command imports, its help, and shell completion."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hf_longattn.cli import app, main
from tests.cases import every_case

from ..fresh_processes import run_fresh
from .imports import list_slow_imports

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


CODES = {"--help": 0, "--version": 0, "recipes": 0, "recipes based": 0, "convert --help": 0}
"""Command lines that need nothing slow, such as torch, and their exit codes."""


def test_commands_import_nothing_slow_before_it_is_needed(repository: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = run_fresh(list_slow_imports, *CODES, cwd=tmp_path, env=environment, level="interpreter")
    assert done.returncode == 0, done.stderr[-500:]
    assert json.loads(done.stdout.splitlines()[-1]) == [[line, code, []] for line, code in CODES.items()]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("mechanisms windw", 1), ("train nothing", 2), ("plan . --mechanism windw", 1), ("plan . --mechanism full --layers 0=windw", 1),
        ("convert . long --mechanism window --option windw=64", 1), ("convert . long --mechanism window --option window=0", 1),
        ("train mlm --modl x", 2), ("evaluate mlm --modl x", 2),
    ],
)  # fmt: skip
def test_typing_errors_in_commands_are_one_sentence(line: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == code
    assert "Error" in capsys.readouterr().err


@every_case("name", sorted(set(COMMANDS) - {"train", "evaluate"}))
def test_help_of_every_command_lists_all_options(name: str) -> None:
    page = CliRunner(env={"COLUMNS": "80"}).invoke(app, [name, "--help"]).output
    flags = {flag for parameter in COMMANDS[name].params for flag in parameter.opts if flag.startswith("--") and not parameter.hidden}
    assert not [flag for flag in flags if not re.search(rf"^  {flag}\b", page, re.M)]


def test_shell_completes_commands_and_flags() -> None:
    for words, completions in ("longattn con", ["convert"]), ("longattn convert --mech", ["--mechanism"]):
        variables = {"_LONGATTN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        assert CliRunner().invoke(app, [], prog_name="longattn", env=variables).output.split() == completions
