#!/usr/bin/env python
"""Write a kernel repository of the Hub, which opens ``attn_implementation="org/flash-longattn"`` without an import.

    python scripts/build_kernel.py OUT
    python scripts/build_kernel.py OUT --name longattn

The kernel is ``scripts/kernel/flash.py`` with everything that it uses of the package, in one file that imports only
torch and the standard library. docs/how-to/kernel.md says how to try and to publish it.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from hf_longattn.names import PRIVATE_APIS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "hf_longattn"
DOORS = ROOT / "scripts" / "kernel" / "flash.py"
CARD = ROOT / "scripts" / "kernel" / "card.md"
NAMES = ("flash-longattn", "longattn")
VARIANTS = {"torch-cpu": "cpu", "torch-cuda": "cuda", "torch-metal": "metal", "torch-rocm": "rocm", "torch-xpu": "xpu"}
"""Folder of a build -> its backend. All have the same file, since the kernel is Python."""
VERSION = 1
LINES = 1500
"""Maximum lines of the kernel."""
SUBSTITUTES = {
    f"{PACKAGE}.names": '''\
import functools
import importlib
from typing import Any


def look_up(name: str, which: int = 0, *, when_called: bool = False) -> Any:
    """The private function of PyTorch with this name in :data:`PRIVATE_APIS`."""
    module, _, path = PRIVATE_APIS[name][which].partition(":")
    return functools.reduce(getattr, path.split("."), importlib.import_module(module))
''',
    f"{PACKAGE}.engines.cpu.onednn": '''\
import torch


def has_amx() -> bool:
    """Whether the processor multiplies tiles of matrices in bf16 (AMX). Blocks have another size then."""
    return getattr(torch.cpu, "_is_amx_tile_supported", bool)()
''',
    f"{PACKAGE}.engines.byte_cache": '''\
def tensor_bytes(value: Tensor) -> int:
    """Bytes of a mask."""
    return value.untyped_storage().nbytes()


def tensor_version(tensor: Tensor) -> int:
    """No key of a mask has a tensor."""
    raise NotImplementedError
''',
}
"""Module -> definitions for the kernel in place of the package's, whose further cases it does not have."""
SUBSTITUTE = "in place of "
NAMESPACE = "namespace_of_this_text"
"""Stands for the namespace of operators, which follows from the text, until the text is there."""
END_OF_DEFINITION = "\0"
LEFT_OUT = {"ByteCache": ("of", "clear", "__len__"), "Group": ("queries", "keys")}
"""Class -> methods that the kernel never calls."""


class Module:
    """A file of the package: its definitions by name, and where its imported names come from."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.lines, self.tree = name, text.splitlines(), ast.parse(text)

    @cached_property
    def definitions(self) -> dict[str, list[ast.stmt]]:
        """Name -> its statements: a definition or assignment, its docstring, and later calls of its methods."""
        found: dict[str, list[ast.stmt]] = {}
        before: list[str] = []
        for statement in self.tree.body:
            names = [*defined(statement)]
            for name in names:
                found.setdefault(name, []).append(statement)
            if isinstance(statement, ast.Expr):
                if isinstance(statement.value, ast.Constant):
                    names = before  # the docstring of the assignment before it
                elif isinstance(statement.value, ast.Call):
                    names = [ast.unparse(statement.value.func).partition(".")[0]]
                for name in names:
                    found.get(name, []).append(statement)
            before = names
        return found

    @cached_property
    def imports(self) -> dict[str, tuple[str, str | None]]:
        """Imported name -> module, and the name there; ``None`` for the module itself."""
        found: dict[str, tuple[str, str | None]] = {}
        for statement in self.tree.body:
            if isinstance(statement, ast.Import):
                for alias in statement.names:
                    found[alias.asname or alias.name.partition(".")[0]] = alias.name, None
            elif isinstance(statement, ast.ImportFrom):
                home = str(statement.module)
                if statement.level:
                    home = ".".join([*self.name.split(".")[: -statement.level], home])
                for alias in statement.names:
                    found[alias.asname or alias.name] = home, alias.name
        return found

    def source(self, statement: ast.stmt) -> str:
        """The lines of a statement with its decorators."""
        first = first_line(statement)
        lines = dict(enumerate(self.lines[first - 1 : statement.end_lineno], first))
        for method in left_out(statement):
            for number in range(first_line(method) - 1, int(method.end_lineno or 0) + 1):
                lines.pop(number, None)
        return "\n".join(lines.values()).rstrip()


def first_line(statement: ast.stmt) -> int:
    """The line of a statement, or of its first decorator."""
    return min([statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", ()))])


def left_out(statement: ast.stmt) -> list[ast.stmt]:
    """The methods of a class that the kernel leaves out."""
    if not isinstance(statement, ast.ClassDef):
        return []
    methods = LEFT_OUT.get(statement.name, ())
    return [member for member in statement.body if isinstance(member, ast.FunctionDef) and member.name in methods]


def defined(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.AnnAssign):
        yield ast.unparse(statement.target)
    elif isinstance(statement, ast.Assign):
        for target in statement.targets:
            for node in ast.walk(target):
                if isinstance(node, ast.Name):
                    yield node.id


def used(statement: ast.stmt) -> set[str]:
    """The names that a statement reads, without methods that are left out."""
    unread = {id(node) for method in left_out(statement) for node in ast.walk(method)}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and id(node) not in unread}


class Collection:
    """What the doors use, module by module."""

    def __init__(self) -> None:
        self.modules: dict[str, Module] = {}
        self.uses: dict[str, set[str]] = {}
        """Name of a module -> those of which it uses a name."""
        self.needed: dict[str, set[int]] = {}
        """Name of a module -> line numbers of the statements needed."""
        self.imported: set[tuple[str, str | None, str]] = set()
        """Module of another library, the name there, and the name here."""
        self.owners: dict[str, str] = {}
        """Name in the kernel -> module of its definition."""
        self.private: set[str] = set()

    def module(self, name: str) -> Module:
        if name not in self.modules:
            if name.startswith(SUBSTITUTE):
                text = SUBSTITUTES[name.removeprefix(SUBSTITUTE)]
            elif name == "doors":
                text = DOORS.read_text(encoding="utf-8")
            else:
                text = ROOT.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")
            self.modules[name] = Module(name, text)
        return self.modules[name]

    def add(self, home: str, name: str) -> str:
        """Add a name of a module, and all that it uses.

        Returns:
            The module that defines it; the same as ``home`` unless a substitute does.
        Raises:
            ValueError: two modules define the name.
        """
        if home in SUBSTITUTES and name in self.module(SUBSTITUTE + home).definitions:
            home = SUBSTITUTE + home
        module = self.module(home)
        if name not in module.definitions:
            if name in module.imports:
                self.add_import(module, name)
            return home
        if self.owners.setdefault(name, home) != home:
            raise ValueError(f"{home} and {self.owners[name]} both define {name}, which the kernel needs once.")
        needed = self.needed.setdefault(home, set())
        for statement in module.definitions[name]:
            if statement.lineno in needed:
                continue
            needed.add(statement.lineno)
            for other in sorted(used(statement)):
                self.uses.setdefault(home, set()).add(self.add(home, other))
            for node in ast.walk(statement):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "look_up":
                    self.private.add(ast.literal_eval(node.args[0]))
        return home

    def add_import(self, module: Module, name: str) -> None:
        home, there = module.imports[name]
        if not home.startswith(PACKAGE):
            self.imported.add((home, there, name))
        elif there is not None:
            self.uses.setdefault(module.name, set()).add(self.add(home, there))

    def ordered(self, home: str = "doors") -> list[str]:
        """The modules that a module uses, each after those that it uses itself, and the module."""
        modules: list[str] = []
        for other in sorted(self.uses.get(home, set()) - {home}):
            modules += [name for name in self.ordered(other) if name not in modules]
        return [*modules, home]


def kernel_source() -> str:
    """The kernel's file.

    Raises:
        ValueError: it uses a module that is neither torch nor of the standard library, or has too many lines.
    """
    collection = Collection()
    doors = collection.module("doors")
    for name in doors.definitions:
        collection.add("doors", name)
    for home, _, _ in collection.imported:
        library = home.partition(".")[0]
        if library != "torch" and library not in sys.stdlib_module_names:
            raise ValueError(f"The kernel imports {home}, which a kernel may not.")
    private = "".join(f"    {name!r}: {PRIVATE_APIS[name]},\n" for name in sorted(collection.private))
    public = [name for name in doors.definitions if name.startswith("flash_attn")]
    text = f'''"""{ast.get_docstring(doors.tree, clean=False)}"""

from __future__ import annotations

{import_lines(collection.imported)}

__all__ = {public}
PRIVATE_APIS = {{
{private}}}


def free_namespace(name: str, number: int = 0) -> str:
    """A namespace without operators: a process may load this file under two names, and each has its own."""
    taken = hasattr(getattr(torch.ops, f"{{name}}_{{number}}"), "cpu_softmax")
    return free_namespace(name, number + 1) if taken else f"{{name}}_{{number}}"


OPERATORS = free_namespace("{NAMESPACE}")
'''
    for home in collection.ordered():
        module = collection.modules[home]
        for statement in module.tree.body:
            if statement.lineno in collection.needed.get(home, ()):
                if isinstance(statement, ast.FunctionDef | ast.ClassDef) or text.endswith(END_OF_DEFINITION):
                    text = text.removesuffix(END_OF_DEFINITION) + "\n\n"
                text += module.source(statement) + "\n"
                if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                    text += END_OF_DEFINITION
    text = text.removesuffix(END_OF_DEFINITION)
    namespace = f"longattn_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    text = text.replace(f'"{PACKAGE}::', 'f"{OPERATORS}::').replace(NAMESPACE, namespace)
    if (count := text.count("\n")) > LINES:
        raise ValueError(f"The kernel has {count:,} lines, but may have at most {LINES:,}.")
    return text


def import_lines(imported: set[tuple[str, str | None, str]]) -> str:
    """The lines that import these names: modules first, then names of modules."""
    modules, names = [], dict[str, list[str]]()
    for home, there, here in sorted(imported, key=str):
        if there is not None:
            names.setdefault(home, []).append(there if there == here else f"{there} as {here}")
        elif here == home.partition(".")[0]:
            modules.append(f"import {home}")
        else:
            modules.append(f"import {home} as {here}")
    return "\n".join([*modules, *(f"from {home} import {', '.join(names[home])}" for home in sorted(names))])


def write_kernel(out: Path, name: str = NAMES[0]) -> None:
    """Write a kernel repository with this name to a folder that does not exist yet, or is empty.

    Raises:
        SystemExit: the folder has files, or cannot be made.
    """
    text = kernel_source()
    try:
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise SystemExit(f"error: {out} exists; choose a folder that does not exist, or delete it first.")
        write_files(out, name, text)
    except OSError as error:
        raise SystemExit(f"error: {out} cannot be written ({error}); choose a folder that you may write.") from error


def write_files(out: Path, name: str, text: str) -> None:
    """Write the files of a kernel repository with this name, whose kernel has this text."""
    python_name = name.replace("-", "_")
    number = hashlib.sha256(text.encode()).hexdigest()[:8]
    for variant, backend in VARIANTS.items():
        folder = out / "build" / variant
        folder.mkdir(parents=True)
        folder.joinpath("__init__.py").write_text(text, encoding="utf-8")
        metadata = {
            "id": f"_{python_name}_{backend}_{number}",
            "name": name,
            "version": VERSION,
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": {"type": backend},
        }
        folder.joinpath("metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    card = CARD.read_text(encoding="utf-8").replace("{name}", name)
    out.joinpath("README.md").write_text(card, encoding="utf-8")
    shutil.copy(ROOT / "LICENSE", out / "LICENSE")


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write, which must not exist yet")
    parser.add_argument(
        "--name",
        choices=NAMES,
        default=NAMES[0],
        help="name of the repository; with 'flash' in it, transformers packs texts without padding",
    )
    options = parser.parse_args(arguments)
    write_kernel(options.out, options.name)
    lines = options.out.joinpath("build", "torch-cpu", "__init__.py").read_text(encoding="utf-8").count("\n")
    print(f"Wrote {options.out}: {len(VARIANTS)} variants of one file of {lines:,} lines.")
    print(f'Try it:  LOCAL_KERNELS="me/{options.name}={options.out.resolve()}" python your_script.py')
    print(f'  with   attn_implementation="me/{options.name}", allow_all_kernels=True')


if __name__ == "__main__":
    main()
