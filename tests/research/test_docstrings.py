"""Source without docstrings: nothing of them is left, it parses, and every name is where it is said to be."""

from __future__ import annotations

import argparse
import ast
import enum
import inspect
import typing

import pytest

from research.docstrings import first_sentences, strip_docstrings

CASES = {
    "whole lines go": ('def f():\n    """Doc."""\n    return 1\n', "def f():\n    return 1\n"),
    "an empty body gets pass": ('class A:\n    """Doc.\n\n    More.\n    """\n', "class A:\n    pass\n"),
    "on one line": ('def f(): "Doc."\n', "def f(): pass\n"),
    "before a semicolon": ('def f():\n    "Doc."; return 1\n', "def f():\n    pass; return 1\n"),
    "with a comment behind": ('def f():\n    "Doc."  # noqa\n    x = 1\n', "def f():\n    x = 1\n"),
    "of the module": ('"""Doc."""\nx = 1\n', "x = 1\n"),
    "of an attribute": ('class A:\n    x = 1\n    """Doc."""\n', "class A:\n    x = 1\n"),
    "beside other characters": ('def ä(): "é"\ndef f():\n    "ü"\n    return "ö"\n', 'def ä(): pass\ndef f():\n    return "ö"\n'),
    "a string that is used stays": ('x = """Doc."""\n', 'x = """Doc."""\n'),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_left(case: str) -> None:
    before, after = CASES[case]
    stripped = strip_docstrings(before)
    assert stripped is not None
    assert stripped.text == after


@pytest.mark.parametrize("module", [argparse, ast, enum, inspect, typing])
def test_real_modules(module: object) -> None:
    source = inspect.getsource(module)
    stripped = strip_docstrings(source)
    assert stripped is not None
    tree = ast.parse(stripped.text)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    assert not [node for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node)]
    names = sorted(node.name for node in ast.walk(tree) if isinstance(node, kinds[1:]))
    assert names == sorted(definition.name for definition in stripped.definitions)
    assert any(definition.docstring for definition in stripped.definitions)
    for definition in stripped.definitions:
        assert stripped.text.startswith(definition.name, definition.start)
        before = stripped.text[: definition.start].split()[-1]
        assert before in {"def", "class"}


def test_code_is_unchanged() -> None:
    source = inspect.getsource(enum)
    stripped = strip_docstrings(source)
    assert stripped is not None
    kept = iter(source.splitlines())
    for line in stripped.text.splitlines():
        assert line.strip() == "pass" or line in kept


def test_invalid_source_gives_none() -> None:
    assert strip_docstrings("def f(:\n") is None


@pytest.mark.parametrize(
    ("docstring", "question"),
    [
        ("Return the mean of all values. It is slow.", "Return the mean of all values."),
        ("Short one. Then the second sentence follows. Third.", "Short one. Then the second sentence follows."),
        ("Two lines of\n    one sentence here.\n\n    Another paragraph.", "Two lines of one sentence here."),
        ("Too short.", ""),
        (">>> f(1) prints what it should print", ""),
        (".. deprecated:: 1.0 use another one instead", ""),
    ],
)
def test_first_sentences(docstring: str, question: str) -> None:
    assert first_sentences(docstring) == question
