"""Modules of the package as text: which others they import, and the same text with those imports made flat.

transformers brings files that lie beside each other and follows ``from .name import`` only, so ``from ..engines.dense import x`` becomes
``from .longattn_engines_dense import x``. Nothing else of a file changes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import RemoteCodeError

__all__ = ["PACKAGE", "Module", "closure", "flat_name", "package_module"]

PACKAGE = "hf_longattn"
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Import:
    """One name that an import statement of a module brings in."""

    module: str  # dotted
    name: str | None  # of what is imported from it; None is the module itself
    alias: str | None


@dataclass(frozen=True)
class Statement:
    """An import statement by its lines (from 1), with the names of this package that it brings in."""

    first: int
    last: int
    column: int
    imports: tuple[Import, ...]


@dataclass(frozen=True)
class Module:
    """A module by its dotted name and its file: one of the package, or a user's that imports from it."""

    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def own(self) -> bool:
        """Whether it is of this package."""
        return self.name.split(".")[0] == PACKAGE

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        """Every import statement about this package."""
        return tuple(self._statements())

    def _statements(self) -> Iterator[Statement]:
        parts = self.name.split(".")
        package = parts if self.path.name == "__init__.py" else parts[:-1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == PACKAGE for alias in node.names):
                raise RemoteCodeError(
                    f"{self.path.name}, line {node.lineno}, reads {ast.unparse(node)!r}, which cannot be bundled; "
                    f"import the names that it needs, for example 'from {PACKAGE} import register_mechanism'."
                )
            if not isinstance(node, ast.ImportFrom):
                continue
            base = package[: len(package) + 1 - node.level] if node.level and self.own else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            if base[:1] == [PACKAGE] and (self.own or not node.level):
                found = tuple(_resolved(base, alias, f"{self.path.name}, line {node.lineno},") for alias in node.names)
                yield Statement(node.lineno, node.end_lineno or node.lineno, node.col_offset, found)

    def flattened(self, stems: Mapping[str, str]) -> str:
        """The text with every import of this package replaced; ``stems`` are dotted name -> name of the flat file without ``.py``."""
        lines = self.text.splitlines()
        for statement in sorted(self.statements, key=lambda statement: -statement.first):
            written = [" " * statement.column + line for line in _flat_imports(statement.imports, stems)]
            lines[statement.first - 1 : statement.last] = written
        return "\n".join(lines) + "\n"


def package_module(name: str) -> Module | None:
    """The module of this package with a dotted name; ``None`` when there is none."""
    path = ROOT.joinpath(*name.split(".")[1:])
    if path.is_dir():
        return Module(name, path / "__init__.py")
    return Module(name, path.with_suffix(".py")) if path.with_suffix(".py").is_file() else None


def closure(seeds: Iterable[Module]) -> dict[str, Module]:
    """The modules given and everything of this package that they import, directly or not, by their names in order."""
    found: dict[str, Module] = {}
    waiting = list(seeds)
    while waiting:
        module = waiting.pop()
        if module.name in found:
            continue
        found[module.name] = module
        named = {one.module for statement in module.statements for one in statement.imports}
        waiting += [other for name in named if (other := package_module(name)) is not None]
    return dict(sorted(found.items()))


def flat_name(name: str) -> str:
    """``hf_longattn.engines.dense`` -> ``longattn_engines_dense``; a user's ``mine.attention`` -> ``longattn_user_mine_attention``."""
    first, *inner = name.split(".")
    return "_".join(["longattn", *inner] if first == PACKAGE else ["longattn_user", first, *inner])


def _resolved(base: list[str], alias: ast.alias, where: str) -> Import:
    """What ``from base import alias`` brings in: a module, or a name of one; names of the package's front are looked up there."""
    whole = ".".join([*base, alias.name])
    if base == [PACKAGE] and alias.name not in ("families", "mechanisms"):
        from .. import _MODULE_OF

        if alias.name in _MODULE_OF:
            return Import(f"{PACKAGE}.{_MODULE_OF[alias.name]}", alias.name, alias.asname)
    if package_module(whole) is not None:
        return Import(whole, None, alias.asname or alias.name)
    if base == [PACKAGE] or package_module(".".join(base)) is None:
        raise RemoteCodeError(f"{where} imports {whole!r}, which is in no module that can be bundled.")
    return Import(".".join(base), alias.name, alias.asname)


def _flat_imports(imports: Iterable[Import], stems: Mapping[str, str]) -> Iterator[str]:
    by_module: dict[str, list[str]] = {}
    for one in imports:
        if one.name is None:
            yield f"from . import {stems[one.module]} as {one.alias}"
        else:
            by_module.setdefault(stems[one.module], []).append(one.name + (f" as {one.alias}" if one.alias else ""))
    yield from (f"from .{stem} import {', '.join(names)}" for stem, names in by_module.items())
