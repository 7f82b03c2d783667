"""What a page of the documentation tells its reader to type, typed: commands, Python and files, in the page's order.

The kind of a fenced block says what is done with it:

``console``: lines that begin with ``$`` are commands (``\\`` at the end continues one), and what follows each is its
output, in which ``…`` stands for anything.
``bash``: commands, one a line (``\\`` at its end continues it); ``text`` after it: what they print, or a part of it.
``…`` stands for anything, and so does a number, which is that of the machine and the model that the page names; one of
three digits or more that a command has is itself.
``python``: run, with the names of the blocks before it; a ``text`` after it is what it prints, as after commands.
``json``, ``yaml``: written to the file that the text before it named last.

Line breaks and the number of spaces do not count. What a page takes for granted (checkpoints, data) comes from
:mod:`tests.stand_ins`, which also shortens what takes hours. What no test can type is listed, with the reason, in
:mod:`tests.not_typed`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.fresh_processes import run_fresh
from tests.not_typed import reason_not_typed
from tests.stand_ins import StandIns, setting_of

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("console", "bash", "python", "text", "json", "yaml")
BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", flags=re.M | re.S)
NAMED = re.compile(r"`([\w./-]+\.(?:jsonl?|ya?ml))`[^`]*\Z")
NUMBER = re.compile(r"[-+−]?\d[\d.,]*(?:e[-+]?\d+)?(?: [kMGT]?(?:FLOP|B)\b)?")


class Block(NamedTuple):
    """A fenced block of a page; ``file`` is what a ``json`` or ``yaml`` block is written to."""

    kind: str
    content: str
    file: str


def blocks(text: str) -> Iterator[Block]:
    """Every fenced block, in order, without the directives of the site."""
    for block in BLOCK.finditer(text):
        kind = block[1].strip()
        if kind.startswith("{"):
            continue
        named = NAMED.search(text[: block.start()]) if kind in ("json", "yaml") else None
        yield Block(kind, block[2], named[1] if named else "")


def pages_with_blocks() -> list[str]:
    """README, CONTRIBUTING, the pages of docs/ and the model cards that have code blocks, from the root of the
    checkout."""
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "model_cards").rglob("*.md"),
    ]
    return sorted(str(page.relative_to(ROOT)) for page in pages if any(blocks(page.read_text(encoding="utf-8"))))


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a block, and what it is said to print right after it."""
    if block.kind == "console":
        for part in re.split(r"^\$ ", re.sub(r" *\\\n *", " ", block.content), flags=re.M)[1:]:
            line, _, output = part.partition("\n")
            yield line, output
    else:
        for line in block.content.replace("\\\n", " ").splitlines():
            if shlex.split(line, comments=True):
                yield line, ""


def words(text: str) -> str:
    """Text with one space between words, without the bars of progress and the rules of tables."""
    return " ".join(re.sub(r".*━.*|─+", " ", text).split())


def matches(shown: str, printed: str) -> bool:
    """Whether a command printed what its page shows."""
    pieces = [re.escape(words(piece)) for piece in shown.split("…")]
    return re.fullmatch(r"\s*.*".join(pieces), words(printed), flags=re.S) is not None


def matches_but_for_numbers(shown: str, printed: str, typed: str) -> bool:
    """Whether what a page shows is a part of what was printed, where numbers differ from machine to machine."""
    kept = {number for number in NUMBER.findall(typed) if number.isdecimal() and len(number) > 2}

    def masked(text: str) -> str:
        return NUMBER.sub(lambda number: number[0] if number[0].replace(",", "") in kept else "0", text)

    return matches(f"…{masked(shown)}…", masked(printed))


class Here:
    """A reader in this process, who has every package, and the programs of a clone."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        search = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        self.env = {**os.environ, "PATH": search, "PYTHONPATH": str(ROOT), "COLUMNS": "400"}

    def longattn(self, arguments: list[str]) -> str:
        from typer.testing import CliRunner

        from hf_longattn.cli import app

        done = CliRunner(env={"COLUMNS": "400"}).invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, f"longattn {shlex.join(arguments)}\n{done.output}"
        return done.output

    def python(self, source: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(source, "page", "exec"), self.names)
        return printed.getvalue()

    def shell(self, line: str) -> str:
        words = shlex.split(line, comments=True)
        if words[0] != "python" or {"|", ">"} & {*words}:
            return run_in_shell(line, self.env)
        done = run_fresh(*words[1:], env=self.env)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def install(self, line: str) -> None:
        """Everything is there; ``tests/test_pages.py`` types it in an empty environment."""


def run_in_shell(line: str, env: dict[str, str]) -> str:
    """What a line of bash prints."""
    done = subprocess.run(
        ["bash", "-ec", f"set -o pipefail\n{line}"], env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def follow(page: str, reader: Here, stand_ins: StandIns) -> None:
    """Do what a page says, in the working directory.

    Args:
        page: its path from the root of the checkout.
    """
    setting = setting_of(page)
    text = (ROOT / page).read_text(encoding="utf-8")
    typed, printed = "", ""
    stand_ins.provide(setting.before)
    reader.python(setting.before)
    for block in blocks(text):
        where = f"{page}:\n```{block.kind}\n{block.content}```\n"
        if block.kind == "python" and not reason_not_typed(page, block.content):
            typed, source = "", setting.shortened(block.content)
            stand_ins.provide(source)
            printed = reader.python(source)
        elif block.kind in ("json", "yaml"):
            assert block.file, f"{where}No file is named before it."
            stand_ins.provide(block.content)
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            copies = (
                [block.content.replace('?"', f'? {number}"') for number in range(setting.copies)]
                if setting.copies > 1
                else None
            )
            Path(block.file).write_text("".join(copies or [block.content]), encoding="utf-8")
        elif block.kind in ("console", "bash"):
            typed, printed = block.content, ""
            for line, shown in commands(block):
                if reason_not_typed(page, line):
                    continue
                output = _type(setting.shortened(line), reader, stand_ins)
                assert not shown.strip() or matches(shown, output), (
                    f"{page}: {line}\nshown:\n{shown}\nprinted:\n{output}"
                )
                printed += output
        elif block.kind == "text" and printed:
            assert matches_but_for_numbers(block.content, printed, typed), f"{where}printed:\n{printed}"


def _type(line: str, reader: Here, stand_ins: StandIns) -> str:
    command = shlex.split(line, comments=True)
    stand_ins.provide_for(command)
    if command[:2] == ["pip", "install"]:
        reader.install(line)
        return ""
    if command[0] != "longattn" or "|" in command:
        return reader.shell(line)
    if ">" in command:
        *command, _, file = command
        Path(file).write_text(reader.longattn(command[1:]), encoding="utf-8")
        return ""
    return reader.longattn(command[1:])
