"""What a page of the documentation tells its reader to type, typed: commands, Python and files, in the page's order.

A page has fenced blocks. ``console``: lines that begin with ``$`` are commands, and what follows each is its output, in which ``…`` stands
for anything and breaks between words do not count. ``python``: run, with the names of the blocks before it. ``json``: written to the file
that the line before the block names.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from hf_longattn.cli import app

BLOCK = re.compile(r"^```(console|python|json)\n(.*?)^```", flags=re.M | re.S)
NAMED = re.compile(r"`([\w.-]+\.jsonl?)`[^`]*\Z")


def blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """Kind, content and name of the file of every block."""
    for block in BLOCK.finditer(text):
        named = NAMED.search(text[: block.start()])
        yield block[1], block[2], named[1] if block[1] == "json" and named else ""


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Each command of a ``console`` block, and what it is said to print."""
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        line, _, output = part.partition("\n")
        yield line, output


def words(text: str) -> str:
    """Text with one space between words, without the bars of progress."""
    return " ".join(re.sub(r".*━.*", " ", text).split())


def matches(shown: str, printed: str) -> bool:
    """Whether a command printed what its page shows."""
    pieces = [re.escape(words(piece)) for piece in shown.split("…")]
    return re.fullmatch(r"\s*.*".join(pieces), words(printed), flags=re.S) is not None


def longattn(arguments: list[str]) -> str:
    """What ``longattn`` prints, in this process."""
    done = CliRunner(env={"COLUMNS": "400"}).invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, f"longattn {shlex.join(arguments)}\n{done.output}"
    return done.output


def follow(page: Path, names: dict[str, Any], *, instead: Callable[[list[str]], str | None] = lambda command: None) -> dict[str, Any]:
    """Do what a page says in the working directory; ``instead`` runs commands other than ``longattn``, or returns ``None``.

    Returns:
        The names that its Python defined.
    """
    for kind, content, file in blocks(page.read_text(encoding="utf-8")):
        if kind == "python":
            exec(compile(content, str(page), "exec"), names)
        elif kind == "json":
            Path(file).write_text(content, encoding="utf-8")
        else:
            for line, shown in commands(content):
                command = shlex.split(line, comments=True)
                printed = longattn(command[1:]) if command[0] == "longattn" else instead(command)
                assert printed is not None, f"{page.name}: nobody runs {line!r}"
                assert not shown.strip() or matches(shown, printed), f"{page.name}: {line}\nshown:\n{shown}\nprinted:\n{printed}"
    return names
