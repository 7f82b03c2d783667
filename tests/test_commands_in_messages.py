"""Whatever a message or a document tells its reader to type exists after `pip install`, and our command line takes it."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from hf_longattn.cli import app
from hf_longattn.errors import LongAttentionError, UsageError
from hf_longattn.training.tasks import load_task, task_names, task_parser
from tests.cases import every_case

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path for path in (ROOT / "hf_longattn").rglob("*.py"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "model_cards").rglob("*.md")),
             ROOT / "hf_longattn" / "hub" / "card.md"]  # fmt: skip
DOCUMENTS = [path for path in DOCUMENTS if "results" not in path.parts and path.stem != "architecture"]  # which is for contributors
CHECKOUT = re.compile(
    r"\bmake [a-z-]+`|`make |^make |python3? -m scripts\b|(?:examples|scripts)/[\w/]+\.py",
    re.M,
)
"""What only a checkout of the repository has."""
OTHERS = {
    "--help",
    "--version",
    "--multi_gpu",
    "--no",
    "--query-gpu",
    "--force-reinstall",
    "--index-url",
}
"""Flags of git, accelerate, pip and nvidia-smi, and beginnings of flags."""


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def texts(path: Path) -> list[tuple[int, str]]:
    """(line, text) of every string in a module that is no docstring; what an f-string inserts is ``1``."""
    return list(_texts(path))


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    parts, docstrings = set(), set()
    for node in nodes(path):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(leaf) for value in node.values for leaf in ast.walk(value)}
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstrings |= {id(one.value) for one in node.body if isinstance(one, ast.Expr)}
    for node in nodes(path):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(one.value) if isinstance(one, ast.Constant) else "1" for one in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (parts | docstrings):
            yield node.lineno, node.value


def lists(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of every list in a module that begins with "longattn"; what is computed is ``1``, what is unpacked is left out."""
    for node in nodes(path):
        if isinstance(node, ast.List) and node.elts and isinstance(node.elts[0], ast.Constant) and node.elts[0].value == "longattn":
            kept = [one for one in node.elts if not isinstance(one, ast.Starred)]
            yield node.lineno, [str(one.value) if isinstance(one, ast.Constant) else "1" for one in kept][1:]


@functools.cache
def commands_of_app() -> dict[str, Any]:
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@functools.cache
def parser_of(task: str, command: str = "train") -> Any:
    return task_parser(load_task(task), f"longattn {command} {task}")


def problem(words: list[str], *, whole: bool) -> str:
    """Why the command line refuses a command; empty if it does not. A part of a command may lack what is required."""
    commands = commands_of_app()
    words = words[: next((place for place, word in enumerate(words) if word in (">", "|", "&&")), len(words))]
    if not words or words[0] not in commands:
        return "" if not whole and (not words or words[0].isupper()) else f"there is no command {words[:1]}"
    words = [re.sub(r"^[A-Z]$", "1", word) for word in words if word not in ("…", "...", "\\")]
    if words[0] in ("train", "evaluate"):
        return "" if len(words) == 1 and not whole else _task_problem(*words, whole=whole)
    command = commands[words[0]]
    try:
        command.make_context(words[0], words[1:], resilient_parsing=False).close()
    except typer.Exit:  # --help
        return ""
    except LongAttentionError as error:  # a recipe or a folder that the reader has
        is_the_readers = ".yaml" in str(error) or "recipe '1'" in str(error) or str(error).startswith("There is no folder")
        return "" if is_the_readers else str(error)
    except Exception as error:  # typer has its own copy of click
        part = type(error).__name__ == "MissingParameter" or "requires an argument" in str(error)
        return "" if part and not whole else str(error)
    return ""


def _task_problem(command: str, task: str, *words: str, whole: bool) -> str:
    if task not in task_names():
        return "" if task in ("1", "TASK") else f"there is no task {task}"
    parser = parser_of(task, command)
    flags = {option for action in parser._actions for option in action.option_strings}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in flags]
    required = [action for action in parser._actions if action.required and not set(action.option_strings) & set(words)]
    if unknown or not whole:
        return f"no flag {unknown}" if unknown else ""
    if required:
        return f"lacks {required[0].option_strings}"
    try:
        parser.parse_args(list(words))
    except UsageError as error:
        return str(error)
    return ""


def commands_in(text: str) -> Iterator[tuple[list[str], bool]]:
    """(words, whether it is whole) of every command in a text: in backticks, or after "type"."""
    for found in re.findall(r"`(longattn(?: [^`]*)?)`", text):
        yield words_of(found), False
    for found in re.findall(
        r"(?:^|type:?\s+|[Nn]ext: )(longattn [a-z][^`\n]*?)(?:[;.,]\s|[;.,]?$|\n| and then)", text.replace("``", "`"), flags=re.M
    ):
        yield words_of(found), False


def words_of(line: str) -> list[str]:
    try:
        return shlex.split(line.replace("\\\n", " "), comments=True)[1:]
    except ValueError:
        return line.split()[1:]


@pytest.mark.thorough
def test_commands_in_messages_are_accepted() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: longattn {' '.join(words)}: {why}"
        for path in MODULES
        for line, text in texts(path)
        for words, whole in commands_in(text)
        if (why := problem(words, whole=whole))
    ]
    wrong += [
        f"{path.relative_to(ROOT)}:{line}: longattn {' '.join(words)}: {why}"
        for path in MODULES
        for line, words in lists(path)
        if (why := problem(words, whole=False))
    ]
    assert not wrong, "\n".join(wrong)


def test_flags_that_messages_name_exist() -> None:
    commands = commands_of_app()
    known = {option for command in commands.values() for one in command.params for option in (*one.opts, *one.secondary_opts)} | OTHERS
    known |= {option for task in task_names() for action in parser_of(task)._actions for option in action.option_strings}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {flag}"
        for path in MODULES
        for line, text in texts(path)
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)
        if flag.rstrip("-_") not in known
    ]
    assert not wrong, "\n".join(wrong)


def test_messages_name_nothing_that_only_a_checkout_has() -> None:
    wrong = [f"{path.relative_to(ROOT)}:{line}: {text[:80]}" for path in MODULES for line, text in texts(path) if CHECKOUT.search(text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.thorough
@every_case("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_documents_are_accepted(path: Path) -> None:
    text, wrong = path.read_text(encoding="utf-8"), []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if language in ("", "bash"):
            found = re.findall(r"^(?:accelerate launch .*?-m hf_)?(longattn .*(?:\\\n.*)*)$", block, flags=re.M)
            wrong += [f"{line}: {why}" for line in found if (why := problem(words_of(line), whole=True))]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    wrong += [f"{words}: {why}" for words, whole in commands_in(outside) if (why := problem(words, whole=whole))]
    assert not wrong, "\n".join(wrong)


@every_case("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_say_where_a_clone_is_needed(path: Path) -> None:
    shown = re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.S)
    sections = re.split(r"^#+ ", shown, flags=re.M)
    wrong = [section.splitlines()[0] for section in sections if CHECKOUT.search(section) and not re.search(r"clone|checkout", section)]
    assert not wrong, f"{wrong}: these commands need a clone of the repository; say so"
