"""Where the package asks which kind of input a model has: a ceiling for each folder, which only falls."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "hf_longattn"
KINDS = {"grid", "audio", "sound", "series", "page", "towers", "reads_text", "reads_pictures", "reads_photographs", "planned_as"}
"""Fields and variables that say which kind of input a model has."""
CLASSES = re.compile(r"Grid|Audio|Sound|Series|Page|Tower|Picture|Video|Spectrogram|VerificationText")
"""Classes of one kind of input."""
ALLOWED = ("inputs", "families", "engines", "mechanisms")
"""Folders that may ask. In engines and mechanisms, ``grid`` is the shape of one call's tokens and no kind of input."""
CEILINGS = {
    "attend.py": 5,
    "audit": 4,
    "backend.py": 1,
    "choice_text.py": 3,
    "cli": 4,
    "conversion": 24,
    "data": 10,
    "diagnostics": 12,
    "evaluation": 5,
    "export": 2,
    "hub": 1,
    "modeling": 32,
    "positions": 1,
    "search": 4,
    "streaming": 4,
    "training": 4,
}
"""Lines that ask, by folder or file of the package. Lower a number when a line goes; the goal is 0."""


def conditions(node: ast.AST) -> list[ast.expr]:
    """The expressions of a node that decide which way the code goes."""
    if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
        return [node.test]
    if isinstance(node, ast.comprehension):
        return node.ifs
    if isinstance(node, ast.Match):
        return [node.subject]
    if isinstance(node, ast.BoolOp):
        return node.values
    identity = isinstance(node, ast.Compare) and any(isinstance(operator, ast.Is | ast.IsNot) for operator in node.ops)
    return [node] if identity and isinstance(node, ast.expr) else []


def asks(condition: ast.expr) -> bool:
    """Whether a condition depends on the kind of input."""
    for node in ast.walk(condition):
        if (isinstance(node, ast.Attribute) and node.attr in KINDS) or (isinstance(node, ast.Name) and node.id in KINDS):
            return True
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("isinstance", "issubclass")
            and CLASSES.search(ast.unparse(node.args[1]))
        ):
            return True
    return False


def asking_lines(tree: ast.AST) -> Iterator[int]:
    """The numbers of the lines that ask."""
    yield from sorted({test.lineno for node in ast.walk(tree) for test in conditions(node) if asks(test)})


def test_fewer_and_fewer_lines_ask_which_kind_of_input_a_model_has() -> None:
    found = {
        path.relative_to(PACKAGE): list(asking_lines(ast.parse(path.read_text(encoding="utf-8")))) for path in sorted(PACKAGE.rglob("*.py"))
    }
    counts: Counter[str] = Counter()
    for path, lines in found.items():
        counts[path.parts[0]] += len(lines)
    for folder in {path.parts[0] for path in found} - {*ALLOWED}:
        where = "; ".join(f"{path}:{','.join(map(str, lines))}" for path, lines in found.items() if path.parts[0] == folder and lines)
        ceiling = CEILINGS.get(folder, 0)
        advice = "ask the input's kind by a method of hf_longattn/inputs" if counts[folder] > ceiling else "lower the ceiling"
        assert counts[folder] == ceiling, (
            f"{counts[folder]} lines of {folder} ask which kind of input there is, not {ceiling}: {advice}. {where}"
        )


def test_the_counter_sees_every_way_to_ask() -> None:
    loops = "while isinstance(size, GridSize): pass\nassert towers\n[a for a in b if a.audio]"
    asked = f"if family.grid is None: pass\nx = 1 if plan.sound else 2\n{loops}"
    assert list(asking_lines(ast.parse(asked))) == [1, 2, 3, 4, 5]
    assert not list(asking_lines(ast.parse("kind.check(plan)\ngrid = family.grid\nif family.two_stacks: pass")))
