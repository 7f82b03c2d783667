"""What the reader of a page has before the first block: checkpoints and data under the names that pages use, made when
a page asks for one.

Each module of this folder adds builders by :func:`stand_in`, and by :func:`page` what a single page takes for granted.
A builder makes one file or folder: small models with random weights and tokenizers of the right class, tables of a few
rows. A name that a page's own command writes (``--output``, the second name of ``longattn convert``) is never made.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

Builder = Callable[[Path], None]
BUILDERS: dict[str, Builder] = {}
SETTINGS: dict[str, Setting] = {}
WRITES = ("convert", "export", "compress")
"""Commands whose second name is what they write."""
CACHE: list[Path] = []
"""The folder of the present :class:`StandIns`, where builders find what they are made from."""


@dataclass(frozen=True)
class Setting:
    """What a page takes for granted, and how it is followed within seconds.

    Args:
        before: Python that is run first; it defines the names that the page's Python uses without having made them.
        instead: a part of the page -> what is typed in its place, for what would take hours.
        copies: how often the lines of a file that the page shows are written. Questions get the number of the copy,
            since rows that are the same are no held-out ones.
        slow: left to ``make test-slow``, as everything beyond about 2 seconds; what parses and compiles, the quick
            tests look at on every page.
    """

    before: str = ""
    instead: dict[str, str] = field(default_factory=dict)
    copies: int = 1
    slow: bool = False

    def shortened(self, text: str) -> str:
        for part, other in self.instead.items():
            text = text.replace(part, other)
        return text


def stand_in(*names: str) -> Callable[[Builder], Builder]:
    """Register what makes these files or folders; it gets the path."""

    def register(builder: Builder) -> Builder:
        assert not BUILDERS.keys() & set(names), names
        BUILDERS.update(dict.fromkeys(names, builder))
        return builder

    return register


def page(path: str, setting: Setting) -> None:
    """Register what a page takes for granted."""
    assert path not in SETTINGS, path
    SETTINGS[path] = setting


def setting_of(path: str) -> Setting:
    """What a page takes for granted; by default nothing."""
    _load()
    return SETTINGS.get(path, Setting())


def made(name: str) -> Path:
    """A stand-in, for the builder of another one that is made from it; do not change it."""
    return StandIns(CACHE[-1]).made(name)


class StandIns:
    """Stand-ins, each made once in ``folder`` and copied to the working directory where a page asks for it."""

    def __init__(self, folder: Path) -> None:
        _load()
        self.folder = folder
        CACHE[:] = [folder]

    def made(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            BUILDERS[name](path)
        return path

    def provide(self, text: str, unless: tuple[str, ...] = ()) -> None:
        """Copy every stand-in whose name ``text`` has, except those that are there."""
        paths = {PurePosixPath(name) for name in re.findall(r"[\w.-][\w./-]*", text)}
        names = {str(path) for named in paths for path in (named, *named.parents)}
        for name in sorted(names & BUILDERS.keys() - set(unless)):
            if not os.path.lexists(name):
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                made = self.made(name)
                shutil.copytree(made, name) if made.is_dir() else shutil.copy(made, name)

    def provide_for(self, command: list[str]) -> None:
        """Copy what a command reads."""
        written = [
            command[place + 1]
            for place, word in enumerate(command[:-1])
            if word in ("--output", "--save", "--html", ">")
        ]
        if command[0] == "longattn" and command[1] in WRITES:
            written += command[3:4]
        self.provide(" ".join(command), tuple(written))


def _load() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
