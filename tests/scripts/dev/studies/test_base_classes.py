"""The demo's questions about base classes: what is asked is certain, and far from its answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.dev.studies import base_classes
from scripts.dev.studies.base_classes import questions_of, records
from tests.trained import tokenizer_of

SOURCE = """\
from core.shapes import Polygon as Base
from .units import Meter, Second
import tree
class Square(Base): ...
class Length(Meter, Second): ...
class Time(Second): ...
class Oak(tree.Tree): ...
class Unit(Second): ...
"""


def asked(text: str) -> dict[str, str]:
    return {one.name: one.module for one in questions_of(text)}


def test_the_module_is_that_of_the_import() -> None:
    assert asked(SOURCE) == {"Square": "core.shapes", "Time": ".units", "Unit": ".units"}
    for one in questions_of(SOURCE):
        assert SOURCE.startswith(one.module, one.answer)
        assert SOURCE.startswith(f"class {one.name}", one.place)


@pytest.mark.parametrize("line", ["Base = print", "from x import Base", "def f(Base): ...", "class Square: ...", "class Base: ..."])
def test_a_name_that_is_bound_twice_is_not_asked_for(line: str) -> None:
    assert "Square" not in asked(f"{SOURCE}\n{line}\n")


def test_what_is_no_python_has_no_questions() -> None:
    assert asked("def f(:") == {}


def test_files_are_read_whole_and_answers_are_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filler = "".join(f"def filler_{number}(x):\n    return x + {number}\n\n" for number in range(100))
    for name, text in {
        "near": SOURCE + filler,
        "far": "from core.shapes import Polygon\n" + filler + "class Square(Polygon): ...\n",
    }.items():
        (tmp_path / "package").mkdir(exist_ok=True)
        (tmp_path / "package" / f"{name}.py").write_text(text)
    monkeypatch.setattr(base_classes.sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    monkeypatch.setattr(base_classes, "PACKAGES", {"test": ("package",)})
    (record,) = records("test", tokenizer_of("bert"), 10)
    assert record["title"] == "package/far.py"
    assert record["question"] == "Which module does the base class of `Square` come from?"
    (answer,), (start,) = record["answers"].values()
    assert record["context"].startswith(answer, start)
    assert answer == "core.shapes"
