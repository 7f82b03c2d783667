"""What reaches the terminal, and how fast a command starts."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path

import pytest
import typer
from rich.styled import Styled
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from hf_longattn.cli import app, main
from hf_longattn.cli.terminal import Line, show, table
from hf_longattn.data.sources import DataError
from hf_longattn.errors import CheckpointError, LongAttentionError, in_one_line, visible
from tests.cases import every_case
from tests.cli.imports import list_slow_imports
from tests.fresh_processes import run_fresh
from tests.trained import tokenizer_of

HOSTILE = "a\x1b[31m\x1b]0;owned\x07b\x9b2J\u202ec\r"
"""Colours, the title of the window, an erased screen, the direction of writing, and the start of the line."""

PRINTING = ("print", "typer.echo", "click.echo", "Console", "rich.print", "Text")
"""What prints, or makes a text that the console does not escape."""


def small(folder: Path) -> Path:
    """The folder of a model with its tokenizer."""
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 1000,
    }
    BertModel(BertConfig(**sizes, max_position_embeddings=64)).save_pretrained(folder)
    tokenizer_of("bert", 64).save_pretrained(folder)
    return folder


def harmless(text: str) -> bool:
    return not any(character in text for character in "\x1b\x07\x9b\u202e\r")


def test_terminal_escapes_control_characters_and_no_text() -> None:
    assert visible(HOSTILE) == r"a\x1b[31m\x1b]0;owned\x07b\x9b2J\u202ec\r"
    assert visible("naïve 日本語 ±\tx\n\udcff") == "naïve 日本語 ±\tx\n\\udcff"
    assert in_one_line("a\n# b\tc\x1b") == r"a\n# b\tc\x1b"


def test_every_error_class_escapes_control_characters() -> None:
    kinds, waiting = [LongAttentionError], [LongAttentionError]
    while waiting:
        waiting = [kind for parent in waiting for kind in parent.__subclasses__()]
        kinds += waiting
    assert {CheckpointError, DataError} <= set(kinds)
    for kind in kinds:
        assert str(kind(f"The file {HOSTILE} is bad.")) == f"The file {visible(HOSTILE)} is bad."


def test_training_that_refuses_columns_escapes_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({f"column{HOSTILE}": "x", "text": "y"}) + "\n")
    with pytest.raises(SystemExit):
        main(f"train classify --model {small(tmp_path)} --data {data} --output {tmp_path}/out --no-bf16".split())
    error = capsys.readouterr().err
    assert "\\x1b[31m" in error
    assert harmless(error.replace("\r", ""))  # the library's progress bar


@pytest.mark.parametrize("colours", [False, True])
def test_report_keeps_its_colours_and_escapes_those_of_others(
    colours: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    show(
        {},
        [
            HOSTILE,
            Styled(HOSTILE, "red"),
            Line(HOSTILE),
            {HOSTILE: HOSTILE},
            table([HOSTILE], [[HOSTILE]], title=HOSTILE),
        ],
    )
    text = capsys.readouterr().out
    assert text.count(r"\x1b[31m\x1b]0;owned\x07b") == 8
    assert ("\x1b[31m" in text) == colours  # ours
    assert "\x1b]0" not in text


def test_report_shows_markup_as_text_and_wraps_all_but_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    numbers = table(("", "one", "two"), [("a", "1", "2"), ("b", "3" * 30, "4" * 30)])
    show({}, [{"model": "[bold]bert", "nothing": ""}, "for readers of [red]terminals " * 3, Line("x" * 70), numbers])
    out = capsys.readouterr().out
    assert "model  [bold]bert" in out
    assert "readers of [red]terminals" in out
    assert "x" * 70 + "\n" in out
    assert "nothing" not in out
    assert max(len(line) for line in out.splitlines() if "x" not in line) <= 60


def test_no_command_prints_past_the_safe_terminal(repository: Path) -> None:
    wrong = []
    for path in sorted((repository / "hf_longattn" / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in PRINTING and path.name not in ("terminal.py", "app.py"):
                wrong.append(f"{path.name}:{node.lineno} {called}")
    assert not wrong, "print through hf_longattn.cli.terminal"


@pytest.mark.parametrize(
    "arguments",
    [["inspect"], ["inspect", "--json"], ["plan", "--mechanism", "window"], ["compress", "OUT", "--method", "x"]],
)
def test_commands_escape_controls_of_names_and_configs(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / f"bert{HOSTILE}\n# heading"
    small(folder)
    command, *rest = arguments
    capsys.readouterr()  # the library's progress bar
    for architectures in (["BertModel"], [f"Bert{HOSTILE}"]):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architectures": architectures, "note": HOSTILE}))
        with pytest.raises(SystemExit):
            main([command, str(folder), *rest])
        printed = capsys.readouterr()
        assert harmless(printed.out + printed.err), printed
        assert (printed.out + printed.err).strip()


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
        ("mechanisms windw", 1),
        ("train nothing", 2),
        ("plan . --mechanism windw", 1),
        ("plan . --mechanism full --layers 0=windw", 1),
        ("convert . long --mechanism window --option windw=64", 1),
        ("convert . long --mechanism window --option window=0", 1),
        ("train mlm --modl x", 2),
        ("evaluate mlm --modl x", 2),
    ],
)
def test_typing_errors_in_commands_are_one_sentence(line: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == code
    assert "Error" in capsys.readouterr().err


@every_case("name", sorted(set(COMMANDS) - {"train", "evaluate"}))
def test_help_of_every_command_lists_all_options(name: str) -> None:
    page = CliRunner(env={"COLUMNS": "80"}).invoke(app, [name, "--help"]).output
    flags = {
        flag
        for parameter in COMMANDS[name].params
        for flag in parameter.opts
        if flag.startswith("--") and not parameter.hidden
    }
    assert not [flag for flag in flags if not re.search(rf"^  {flag}\b", page, re.M)]


def test_shell_completes_commands_and_flags() -> None:
    for words, completions in ("longattn con", ["convert"]), ("longattn convert --mech", ["--mechanism"]):
        variables = {
            "_LONGATTN_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        assert CliRunner().invoke(app, [], prog_name="longattn", env=variables).output.split() == completions
