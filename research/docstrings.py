"""Take every docstring out of Python source, and say which definition each one described.

The result is valid source without a trace of where a docstring stood: whole lines go, and a body that held nothing else
gets ``pass``. Bare strings elsewhere in a body (attribute docstrings) go as well.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_NAME = re.compile(rb"(?:async\s+def|def|class)\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z`'\"(])")


@dataclass(frozen=True)
class Definition:
    """A ``def`` or ``class``: its ``name``, the character offset of that name in the stripped source, its docstring."""

    name: str
    start: int
    docstring: str | None


@dataclass(frozen=True)
class StrippedSource:
    """Source without docstrings, and its definitions in the order of the file."""

    text: str
    definitions: tuple[Definition, ...]


def strip_docstrings(source: str) -> StrippedSource | None:
    """Remove all docstrings from ``source``.

    Args:
        source: Python source with unix line ends.

    Returns:
        The stripped source and its definitions; None when ``source`` does not parse, or cannot be cut safely.
    """
    tree = _parse(source)
    if tree is None:
        return None
    data = source.encode("utf-8", "surrogatepass")
    lines = _line_starts(data)
    for start, end, replacement in sorted(_cuts(tree, data, lines), reverse=True):
        data = data[:start] + replacement + data[end:]
    text = data.decode("utf-8", "surrogatepass")
    stripped = _parse(text)
    if stripped is None:
        return None
    before, after = list(_definitions(tree)), list(_definitions(stripped))
    if [node.name for node in before] != [node.name for node in after]:
        return None
    lines = _line_starts(data)
    found = []
    for old, new in zip(before, after, strict=True):
        keyword = _NAME.match(data, lines[new.lineno - 1] + new.col_offset)
        if keyword is None:  # a line continuation between keyword and name
            return None
        start = len(data[: keyword.end()].decode("utf-8", "surrogatepass"))
        if not text.startswith(new.name, start):  # an identifier that Python normalises (NFKC)
            return None
        found.append(Definition(new.name, start, ast.get_docstring(old, clean=False)))
    return StrippedSource(text, tuple(found))


def first_sentences(docstring: str, min_words: int = 5, max_characters: int = 300) -> str:
    """Return the first sentence of a docstring's first paragraph, and the next ones while it is below ``min_words``.

    The result is one line, cut at a word to ``max_characters``; '' when the paragraph is not prose (a doctest, a rule,
    a signature, a directive).
    """
    paragraph = re.split(r"\n\s*\n", inspect.cleandoc(docstring).strip(), maxsplit=1)[0]
    text = " ".join(paragraph.split())
    if re.match(r">>>|\.\. |:\w+|[-=*~#]{3}|@|\w+\(", text):
        return ""
    sentences = _SENTENCE_END.split(text)
    question = sentences[0]
    for sentence in sentences[1:]:
        if len(question.split()) >= min_words:
            break
        question = f"{question} {sentence}"
    if len(question.split()) < min_words:
        return ""
    return question if len(question) <= max_characters else question[:max_characters].rsplit(" ", 1)[0]


def normalised(text: str) -> str:
    """Return ``text`` in lower case with every run of other characters than letters and digits as one space."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _line_starts(data: bytes) -> list[int]:
    return [0, *(match.end() for match in re.finditer(rb"\n", data))]


def _definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Yield every definition of the file, ordered by place."""
    found = [node for node in ast.walk(tree) if isinstance(node, _DEFINITIONS)]
    yield from sorted(found, key=lambda node: (node.lineno, node.col_offset))


def _cuts(tree: ast.Module, data: bytes, lines: list[int]) -> Iterator[tuple[int, int, bytes]]:
    """Yield the (start, end, replacement) in bytes of every bare string statement."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if not isinstance(block, list):
                continue
            strings = [statement for statement in block if _is_string(statement)]
            needs_body = len(strings) == len(block) and not isinstance(node, ast.Module)
            for place, statement in enumerate(strings):
                start = lines[statement.lineno - 1] + statement.col_offset
                end = lines[(statement.end_lineno or 1) - 1] + (statement.end_col_offset or 0)
                yield _cut(data, start, end, keep_pass=needs_body and place == 0)


def _is_string(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)


def _cut(data: bytes, start: int, end: int, keep_pass: bool) -> tuple[int, int, bytes]:
    line_start = data.rfind(b"\n", 0, start) + 1
    line_end = data.find(b"\n", end)
    line_end = len(data) if line_end < 0 else line_end + 1
    alone = not data[line_start:start].strip() and re.fullmatch(rb"[ \t;]*(#.*)?\n?", data[end:line_end])
    if not alone:
        return start, end, b"pass"
    if keep_pass:
        return start, line_end, b"pass\n"
    return line_start, line_end, b""
