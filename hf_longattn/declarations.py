"""Option classes rebuilt from source files without importing them. The command line uses them before torch is imported.

A class is rebuilt with its bases, annotations and values, but without its methods. ``dataclasses.fields``, ``HfArgumentParser`` and
``Options.build`` read it like the class itself. Files that import nothing slow are imported. In other files, only the parts of such a
class are evaluated: literals, constants, and calls of functions from imported files. Anything else raises :class:`UndeclaredError`, and
the caller imports the file. Tests compare the rebuilt classes with the originals.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from .naming import module_path

PACKAGE = __name__.rpartition(".")[0]
LIGHT_LIBRARIES = ("transformers.hf_argparser",)
"""Modules of other libraries that do not import torch."""


class UndeclaredError(Exception):
    """A value or class that cannot be known without importing its file."""


class ForeignClass:
    """A stand-in for a class of another library, which is not imported. It has no fields."""


def keyword_of(module: str, name: str, keyword: str) -> Any:
    """The argument ``keyword`` of the call that a module assigns to ``name``, as in ``TASK = Task(arguments=...)``.

    Raises:
        UndeclaredError: there is none, or its value cannot be known without importing the module.
    """
    source = _source(module)
    call = getattr(source.definitions.get(name), "value", None)
    for argument in call.keywords if isinstance(call, ast.Call) else ():
        if argument.arg == keyword:
            return source.evaluate(argument.value)
    raise UndeclaredError(f"{module} assigns no call with {keyword} to {name}")


def member_of_class(module: str, member: str) -> Any:
    """The value of the class attribute ``member``, which exactly one class of the module assigns.

    Raises:
        UndeclaredError: no class or several assign it, or its value cannot be known without importing the module.
    """
    source = _source(module)
    classes = [node for node in source.tree.body if isinstance(node, ast.ClassDef)]
    values = [
        statement.value
        for node in classes
        for statement in node.body
        if isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == [member]
    ]
    if len(values) != 1:
        raise UndeclaredError(f"{len(values)} classes of {module} assign {member}")
    return source.evaluate(values[0])


@cache
def class_fields(path: Path, name: str) -> list[str]:
    """The names of the annotated fields of a class in any file.

    Raises:
        UndeclaredError: the file has no such class.
    """
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return [entry.target.id for entry in node.body if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)]
    raise UndeclaredError(f"{path} has no class {name}")


@cache
def _source(module: str) -> _Source:
    return _Source(module)


class _Source:
    """A module of this package and the values of the names at its top level."""

    def __init__(self, module: str) -> None:
        package, _, name = module.removeprefix(f"{PACKAGE}.").rpartition(".")
        path = module_path(package, name) if module.startswith(f"{PACKAGE}.") else None
        if path is None:
            raise UndeclaredError(f"there is no file of {module}")
        try:
            self.module, self.tree = module, ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError) as error:
            raise UndeclaredError(f"{path} is not Python: {error}") from error
        self.parents = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        self.values: dict[str, Any] = {}

    @cached_property
    def definitions(self) -> dict[str, ast.stmt]:
        """Name -> the statement that defines it."""
        defined: dict[str, ast.stmt] = {}
        for statement in self.tree.body:
            match statement:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                    defined[name] = statement
                case ast.Assign(targets=[ast.Name(id=name)]):
                    defined[name] = statement
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                    pairs = zip(targets, values, strict=False)
                    defined |= {target.id: ast.Assign([target], value) for target, value in pairs if isinstance(target, ast.Name)}
                case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                    defined |= {alias.asname or alias.name.partition(".")[0]: statement for alias in aliases}
        return defined

    def origin(self, statement: ast.ImportFrom) -> str:
        """The module that a statement imports from."""
        base = self.parents[: len(self.parents) + 1 - statement.level] if statement.level else []
        return ".".join([*base, *([statement.module] if statement.module else [])])

    @cached_property
    def imports(self) -> list[str]:
        """The modules that this one imports, and the packages that contain it."""
        modules = [".".join(self.parents[:depth]) for depth in range(2, len(self.parents) + 1)]
        for statement in self.tree.body:
            if isinstance(statement, ast.Import):
                modules += [alias.name for alias in statement.names]
            elif isinstance(statement, ast.ImportFrom):
                modules.append(self.origin(statement))
        return modules

    def evaluate(self, expression: ast.expr) -> Any:
        """The value of an expression.

        Raises:
            UndeclaredError: it cannot be known without importing the module.
        """
        code = compile(ast.Expression(expression), self.module, "eval")
        try:
            return eval(code, {"__builtins__": builtins}, _Names(self))
        except UndeclaredError:
            raise
        except Exception as error:  # of any type, since the code works on classes without methods
            raise UndeclaredError(f"{self.module}: {ast.unparse(expression)[:80]}") from error

    def value(self, name: str) -> Any:
        """The value of a name that the module defines.

        Raises:
            UndeclaredError: it cannot be known without importing the module.
        """
        if name not in self.values:
            match self.definitions.get(name):
                case ast.ClassDef() as node:
                    self.values[name] = self._class(node)
                case ast.Assign(value=ast.expr() as value) | ast.AnnAssign(value=ast.expr() as value):
                    self.values[name] = self.evaluate(value)
                case ast.Import(names=[alias]) if _is_light(alias.name):
                    self.values[name] = importlib.import_module(alias.name if alias.asname else name)
                case ast.ImportFrom() as statement:
                    alias = next(alias for alias in statement.names if (alias.asname or alias.name) == name)
                    self.values[name] = _imported(self.origin(statement), alias.name)
                case _:
                    raise UndeclaredError(f"{self.module}.{name}")
        return self.values[name]

    def _class(self, node: ast.ClassDef) -> Any:
        bases = tuple(dict.fromkeys(map(self.evaluate, node.bases)))
        annotations: dict[str, Any] = {}
        members: dict[str, Any] = {"__module__": self.module, "__doc__": ast.get_docstring(node), "__annotations__": annotations}
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                annotations[statement.target.id] = self.evaluate(statement.annotation)
                if statement.value is not None:
                    members[statement.target.id] = self.evaluate(statement.value)
        declared_class: Any = type(node.name, bases, members)
        for decorator in reversed(node.decorator_list):
            declared_class = self.evaluate(decorator)(declared_class)
        return declared_class


class _Names(dict[str, Any]):
    """The names of a module, for ``eval``; builtins are looked up elsewhere."""

    def __init__(self, source: _Source) -> None:
        super().__init__()
        self.source = source

    def __missing__(self, name: str) -> Any:
        if name not in self.source.definitions:
            raise KeyError(name)
        return self.source.value(name)


@cache
def _is_light(module: str) -> bool:
    """Whether importing a module imports nothing slow."""
    waiting, visited = [module], set()
    while waiting:
        name = waiting.pop()
        if name in visited or name in (PACKAGE, *LIGHT_LIBRARIES) or name.partition(".")[0] in sys.stdlib_module_names:
            continue
        if not name.startswith(f"{PACKAGE}."):
            return False
        visited.add(name)
        waiting += [] if name in sys.modules else _source(name).imports
    return True


def _imported(module: str, name: str) -> Any:
    """``from module import name``. A slow module of this package is read from source; a slow library gives a stand-in class."""
    if _is_light(module):
        return getattr(importlib.import_module(module), name)
    if module.startswith(f"{PACKAGE}."):
        return _source(module).value(name)
    return type(name, (ForeignClass,), {"__module__": module})
