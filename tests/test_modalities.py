"""Nothing outside of inputs/ and families/ asks for the modality of a model.

A condition asks if it reads a field that names the modality, or tests for a class of one modality. Fields of a spec
(``family.spec.positions``) and results of functions do not name it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Set
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "hf_longattn"
FIELDS = {
    "grid",
    "audio",
    "sound",
    "series",
    "page",
    "towers",
    "reads",
    "reads_images",
    "reads_photographs",
    "planned_as",
}
"""Fields that name the modality of a model."""
FILES_OF_MODALITIES = (
    "inputs/**/*.py",
    "modeling/family/*_spec.py",
    "modeling/grids.py",
    "modeling/sounds.py",
    "modeling/towers.py",
)
"""Files whose classes belong to one modality."""
PREDICATES = {"all", "any", "bool", "iter", "len", "list", "next", "set", "sorted", "tuple"}
"""Functions whose result says whether their argument is there."""
ALLOWED = ("inputs", "families", "engines", "mechanisms")
"""Folders that may ask. In engines and mechanisms, ``grid`` is the shape of one call's tokens and no modality."""
OTHER = {("call", "grid"), ("request", "towers"), ("data_args", "audio")}
"""Fields of the same names that say something else: the shape of one call's tokens, and a setting that a user
typed."""
DECLARING = {"setting", "argument"}
"""Functions that declare a setting."""
CLASSES = {
    node.name
    for pattern in FILES_OF_MODALITIES
    for path in PACKAGE.glob(pattern)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.ClassDef)
}
SAYS = re.compile(rf"\b({'|'.join(sorted(FIELDS | CLASSES))})\b")
"""What is in every text that asks."""


def asks(node: ast.AST, typed: set[str], bound: Set[str] = frozenset()) -> bool:
    """Whether the value of an expression names the modality; ``typed`` are fields of ``self`` with values that a user
    typed, ``bound`` are variables that were assigned such a value."""
    match node:
        case ast.Attribute(value=ast.Name(id=owner), attr=name) if (owner, name) in OTHER or (
            owner == "self" and name in typed
        ):
            return False
        case ast.Attribute(attr=name):
            return name in FIELDS
        case ast.Name(id=name):
            return name in bound
        case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[_, ast.Constant(value=name), *_]):
            return name in FIELDS
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, classes]):
            return bool({part.id for part in ast.walk(classes) if isinstance(part, ast.Name)} & CLASSES)
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in PREDICATES:
            return any(asks(argument, typed, bound) for argument in arguments)
        case ast.Call() | ast.Lambda() | ast.JoinedStr():
            return False
        case ast.GeneratorExp(elt=element) | ast.ListComp(elt=element) | ast.SetComp(elt=element):
            return asks(element, typed, bound)
        case ast.Subscript(value=value):
            return asks(value, typed, bound)
    return any(asks(child, typed, bound) for child in ast.iter_child_nodes(node))


def conditions(node: ast.AST) -> list[ast.expr]:
    """The expressions of a node that decide which way the code goes."""
    match node:
        case ast.If() | ast.IfExp() | ast.While() | ast.Assert():
            return [node.test]
        case ast.comprehension():
            return node.ifs
        case ast.Match():
            return [node.subject]
        case ast.BoolOp():
            return node.values
        case ast.Compare(ops=[ast.Is() | ast.IsNot(), *_]):
            return [node]
        # a table by modality
        case ast.Subscript(slice=place) | ast.Call(func=ast.Attribute(attr="get"), args=[place, *_]):
            return [place]
    return []


def asking_lines(text: str) -> Iterator[int]:
    """The numbers of the lines of a file that ask."""
    if not SAYS.search(text):
        return
    nodes = [*ast.walk(ast.parse(text))]
    fields = (node for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call))
    typed = {ast.unparse(field.target) for field in fields if ast.unparse(field.value.func) in DECLARING}  # type: ignore[union-attr]
    found = {test.lineno for node in nodes for test in conditions(node) if asks(test, typed)}
    for function in (node for node in nodes if isinstance(node, ast.FunctionDef)):
        inner = [*ast.walk(function)]
        assigned = [(node.targets[0], node.value) for node in inner if isinstance(node, ast.Assign)]
        bound = {name.id for name, value in assigned if isinstance(name, ast.Name) and asks(value, typed)}
        found |= {test.lineno for node in inner for test in conditions(node) if asks(test, typed, bound)}
    yield from sorted(found)


def test_only_inputs_and_families_ask_for_the_modality_of_a_model() -> None:
    asking = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if name.parts[0] not in ALLOWED:
            asking += [f"{name}:{line}" for line in asking_lines(path.read_text(encoding="utf-8"))]
    advice = "let a method of the modality (hf_longattn/inputs) decide, or a field of the family's spec"
    assert not asking, f"{', '.join(asking)} ask for the modality; {advice}"


ASKING = """
if family.grid is None: pass
x = 1 if plan.sound else 2
while isinstance(size, GridModality): pass
assert len(model.towers)
[a for a in b if a.audio]
if getattr(model, "towers", None): pass
if "text" in (plan.towers or {}): pass
TABLE[modality.planned_as](plan)
TABLE.get(config.reads)
def g(family):
    spec = family.grid
    return spec is None
"""
NOT_ASKING = """
modality.check(plan)
grid = family.grid
if family.two_stacks or family.spec.positions is None or grid.prefix or call.grid: pass
if len(set(spec.layer_grids(config, images.grid))) > 1: pass
def f(page: int, request): return 1 if page == 2 or request.towers is None else len(read(request.towers))
class Settings:
    towers: Any = setting(None)
    def check(self): return self.towers or {}
"""


def test_asking_lines_are_conditions_on_the_modality_and_no_others() -> None:
    assert list(asking_lines(ASKING.strip())) == [*range(1, 10), 12]
    assert not list(asking_lines(NOT_ASKING))
