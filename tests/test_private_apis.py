"""Private names of other libraries: all in one table, each seen in these versions, and each missed in a sentence."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from hf_longattn import names as private_apis
from hf_longattn.names import PRIVATE_APIS, TESTED, release, warn_untested
from tests.cases import every_case

from .fresh_processes import run_fresh
from .removed_apis import resolve

HOME = "hf_longattn/names.py"
FOLDERS = ("hf_longattn", "scripts")
OTHERS = {
    "_replace",
    "_fields",
    "_asdict",
    "_actions",
    "_action_groups",
    "_group_actions",
    "_optionals",
    "_exit",
    "_python_dispatch",
}
"""Private by their spelling only (of a namedtuple, of os; of the module in which PyTorch documents TorchDispatchMode),
or argparse's."""
LISTED = {
    part for api in PRIVATE_APIS.values() for where in api for part in re.split("[.:]", where) if part.startswith("_")
}
DECLARED = (
    "_keep_in_fp32_modules_strict",
    "_no_split_modules",
    "_supports_attention_backend",
    "_supports_flash_attn",
    "_supports_flex_attn",
    "_supports_sdpa",
)
"""Class attributes that transformers' documentation tells model authors to set. Versions that do not know one ignore
it."""
MARKS = ("_is_hf_initialized", "_dynamo_marked_constant")
"""Attributes that transformers sets on tensors, and torch.compile reads of functions. Nothing has them before."""
NAMED_ONLY = LISTED | {*MARKS, "TENSOR_PROCESSORS"}


@every_case("name", PRIVATE_APIS)
def test_private_apis_are_in_the_installed_versions(name: str) -> None:
    for where in PRIVATE_APIS[name]:
        if (library := re.split("[.:]", where)[0]) in ("peft", "sentence_transformers"):
            pytest.importorskip(library)
        resolve(where)


def test_tested_versions_are_those_of_pyproject_and_constraints(repository: Path) -> None:
    """The lowest by ``make test-lowest``, the pinned ones by every other run, newer ones by ``make test-newest``."""
    allowed, pinned = (
        (repository / file).read_text(encoding="utf-8") for file in ("pyproject.toml", "constraints.txt")
    )
    for library, (first, last) in TESTED.items():
        library = library.replace("_", "-")
        assert re.search(rf'"{library}>={re.escape(first)}[",]', allowed), f"{library} {first}"
        (pin,) = re.findall(rf"^{library}==(.+)", pinned, re.MULTILINE)
        assert release(first) <= release(pin) <= release(last), f"{library} {last}"
    named = f"torch ≥ {TESTED['torch'][0]}, transformers ≥ {TESTED['transformers'][0]}"
    assert named in (repository / "README.md").read_text(encoding="utf-8")


NEWER = [
    ({"torch": "2.12"}, "torch"),
    ({"transformers": "4.99"}, "transformers"),
    ({"torch": "2.9", "transformers": "5.19", "peft": "0.20"}, "torch transformers peft"),
    ({"transformers": "5.100", "torch": "3.0"}, ""),
    ({}, ""),
]
"""Newest tested versions, and the libraries of which a newer one is installed."""


@every_case(("newest", "newer"), NEWER)
def test_libraries_newer_than_tested_are_logged_in_one_line(
    newest: dict[str, str], newer: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installed = {library: ".".join(version(library).split(".")[:2]) for library in TESTED}
    for library, last in {**installed, **newest}.items():
        monkeypatch.setitem(private_apis.TESTED, library, ("0.1", last))
    caplog.clear()
    warn_untested()
    assert len(caplog.messages) == bool(newer)
    for library in newer.split():
        assert f"{library} {version(library)} (tested up to {newest[library]})" in caplog.text
        assert f"'{library}=={newest[library]}.*'" in caplog.text


def test_a_library_that_is_not_installed_is_not_newer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(private_apis, "TESTED", {"no_such_library": ("1.0", "1.0")})
    warn_untested()
    assert not caplog.messages


@every_case(("text", "numbers"), [("5.24.0", (5, 24)), ("2.13.0+cpu", (2, 13)), ("0.22rc1", (0, 22)), ("6", (6,))])
def test_release_reads_major_and_minor_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert release(text) == numbers


def nodes_of_files(repository: Path) -> Iterator[tuple[str, list[ast.AST]]]:
    for folder in FOLDERS:
        for path in sorted((repository / folder).rglob("*.py")):
            yield path.relative_to(repository).as_posix(), [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]


def names_of_ours(nodes: list[ast.AST]) -> Iterator[str]:
    """Private names that a file defines: functions, classes, variables, attributes and fields."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            yield node.attr


def touched(nodes: list[ast.AST], ours: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of every private name of another package that a file uses."""
    for node in nodes:
        if isinstance(node, ast.Attribute):
            name = node.attr
            if name == "_check" and ast.unparse(node.value) != "torch":
                continue
            if name in LISTED or (name.startswith("_") and not name.startswith("__") and name not in ours | OTHERS):
                yield node.lineno, name
        elif (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and (node.module or "").split(".")[0] in (*TESTED, "torch")
        ):
            private = [
                name
                for name in [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                if name.startswith("_")
            ]
            yield from ((node.lineno, name) for name in private if name not in {"__version__", *OTHERS})
        elif isinstance(node, ast.Constant) and node.value in NAMED_ONLY:
            yield node.lineno, str(node.value)


def parts(name: str) -> set[str]:
    """The private names of an API."""
    return {part for where in PRIVATE_APIS[name] for part in re.split("[.:]", where)} & LISTED


def test_private_names_are_used_only_in_files_that_look_them_up(repository: Path) -> None:
    """A file that touches a private name also gives our name of its API to look_up, missing or warn_missing."""
    read = {file: nodes for file, nodes in nodes_of_files(repository) if file != HOME}
    ours = {name for nodes in read.values() for name in names_of_ours(nodes) if name.startswith("_")} - LISTED
    asked = {
        file: {node.value for node in nodes if isinstance(node, ast.Constant)} & {*PRIVATE_APIS}
        for file, nodes in read.items()
    }
    found = {(file, line, name) for file, nodes in read.items() for line, name in touched(nodes, ours)}
    wrong = [
        f"{file}:{line} {name}"
        for file, line, name in sorted(found)
        if name not in {*DECLARED, *MARKS}.union(*(parts(api) for api in asked[file]))
    ]
    assert not wrong, (
        f"enter it in the table of {HOME}, and say by `missing` or `warn_missing` what happens without it"
    )
    assert len({name for _, _, name in found} & LISTED) > 15, "this very test finds them"
    assert {*PRIVATE_APIS} - {"initialised"} <= set().union(*asked.values()), "an entry that nothing uses"


def test_each_missing_private_api_is_named_in_a_sentence(repository: Path) -> None:
    """Each is removed in a separate process."""
    done = run_fresh("-m", "tests.removed_apis", cwd=repository)
    assert done.returncode == 0, done.stdout + done.stderr
    sentences = done.stdout.splitlines()
    assert len(sentences) == len(PRIVATE_APIS)
    for sentence in sentences:
        assert re.search(r"has no .*, which hf_longattn uses; install .*, with which it is tested\.", sentence), (
            sentence
        )
