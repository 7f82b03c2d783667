"""Nothing outside of inputs/ and families/ asks which kind of input a model has.

A line asks if it decides by a field, a variable or a class that says the kind. Fields of a rule (``family.rule.positions``), results of
functions, and variables of another type that only share a name (a number ``page``) do not say the kind.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "hf_longattn"
KINDS = {
    "grid", "audio", "sound", "series", "page", "towers", "reads", "reads_text", "reads_images", "reads_photographs", "planned_as"
}  # fmt: skip
"""Fields that say which kind of input a model has."""
FILES_OF_KINDS = (
    "inputs/**/*.py", "modeling/family/*_rule.py", "modeling/family/*_config.py", "modeling/grids.py", "modeling/audio.py",
    "modeling/towers.py",
)  # fmt: skip
"""Files whose classes belong to one kind of input."""
PREDICATES = {"all", "any", "bool", "iter", "len", "list", "next", "set", "sorted", "tuple"}
"""Functions whose result says whether their argument is there."""
VIEWS = {"copy", "get", "items", "keys", "values"}
"""Methods whose result says whether the mapping has entries."""
ALLOWED = ("inputs", "families", "engines", "mechanisms")
"""Folders that may ask. In engines and mechanisms, ``grid`` is the shape of one call's tokens and no kind of input."""


OTHER = {("call", "grid"), ("request", "towers"), ("data_args", "audio")}
"""Fields of the same names that say something else: the shape of one call's tokens, and a setting that a user typed."""
DECLARING = {"setting", "argument"}
"""Functions that declare a setting."""


def classes_of_kinds() -> set[str]:
    """Names of classes that belong to one kind of input."""
    files = [path for pattern in FILES_OF_KINDS for path in PACKAGE.glob(pattern)]
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in files)
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


CLASSES = classes_of_kinds()
SAYS = re.compile(rf"\b({'|'.join(sorted(KINDS | CLASSES))})\b")
"""What is in every text that asks."""


def asks(node: ast.AST | None, bound: set[str], typed: set[str]) -> bool:
    """Whether the value of an expression says the kind of input.

    Args:
        bound: variables whose values say it.
        typed: fields of ``self`` with values that a user typed.
    """
    match node:
        case ast.Attribute(value=ast.Name(id=owner), attr=name) if (owner, name) in OTHER or (owner == "self" and name in typed):
            return False
        case ast.Attribute(attr=name):
            return name in KINDS
        case ast.Name(id=name):
            return name in bound
        case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[_, ast.Constant(value=name), *_]):
            return name in KINDS
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, classes]):
            names = {part.id for part in ast.walk(classes) if isinstance(part, ast.Name)}
            return bool(names & CLASSES)
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in PREDICATES:
            return any(asks(argument, bound, typed) for argument in arguments)
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in VIEWS:
            return asks(value, bound, typed)
        case ast.Call():
            return False
        case ast.ListComp(generators=parts) | ast.SetComp(generators=parts) | ast.DictComp(generators=parts):
            return any(asks(part.iter, bound, typed) for part in parts)
        case ast.GeneratorExp(elt=element, generators=parts):
            names = {part.target.id for part in parts if isinstance(part.target, ast.Name)}
            whole = isinstance(element, ast.Name) and element.id in names  # any(tower for tower in towers)
            return asks(element, bound, typed) or (whole and any(asks(part.iter, bound, typed) for part in parts))
        case ast.Subscript(value=value):
            return asks(value, bound, typed)
        case ast.Dict(values=values):
            return any(asks(value, bound, typed) for value in values)
        case None | ast.Lambda() | ast.JoinedStr():
            return False
    return any(asks(child, bound, typed) for child in ast.iter_child_nodes(node))


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
        case ast.Subscript(slice=place):  # a table with an entry for each kind
            return [place]
        case ast.Call(func=ast.Attribute(attr="get"), args=[place, *_]):
            return [place]
    return []


def says_another_type(annotation: ast.expr | None) -> bool:
    """Whether an annotation names a type that is of no kind of input."""
    names = {part.id for part in ast.walk(annotation) if isinstance(part, ast.Name)} if annotation is not None else {"Any"}
    return not names & {*CLASSES, "Any", "Family", "object"}


def bound_names(function: ast.AST, typed: set[str]) -> set[str]:
    """Variables of a function whose values say the kind of input: bound to such a field, or parameters named like one."""
    every = [argument for node in ast.walk(function) if isinstance(node, ast.arguments) for argument in (*node.args, *node.kwonlyargs)]
    bound = {argument.arg for argument in every if argument.arg in KINDS and not says_another_type(argument.annotation)}
    pairs: list[tuple[ast.expr, ast.expr | None]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            pairs += [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
            pairs.append((node.target, node.value))
    for target, value in pairs:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs += zip(target.elts, value.elts, strict=False)
            continue
        results = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
        if isinstance(target, ast.Name) and any(asks(result, bound, typed) for result in results if not is_entry(result)):
            bound.add(target.id)
    return bound


def is_entry(node: ast.expr | None) -> bool:
    """Whether an expression takes an entry out of a mapping, which does not say the kind."""
    parts = node.values if isinstance(node, ast.BoolOp) else [node]
    return any(isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr == "get" for part in parts)


def typed_fields(tree: ast.AST) -> set[str]:
    """Names of the settings that a file's classes declare: values that a user typed."""
    fields = (node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call))
    return {ast.unparse(field.target) for field in fields if ast.unparse(field.value.func) in DECLARING}


def asking_lines(text: str) -> Iterator[int]:
    """The numbers of the lines of a file that ask."""
    if not SAYS.search(text):
        return
    tree, lines = ast.parse(text), text.splitlines()
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inner, typed = {id(node) for function in functions for node in ast.walk(function)}, typed_fields(tree)
    functions = [one for one in functions if SAYS.search("\n".join(lines[one.lineno - 1 : one.end_lineno]))]
    scopes = [([node for node in ast.walk(tree) if id(node) not in inner], set[str]())]
    scopes += [([*ast.walk(function)], bound_names(function, typed)) for function in functions]
    tests = ((test, bound) for nodes, bound in scopes for node in nodes for test in conditions(node))
    yield from sorted({test.lineno for test, bound in tests if asks(test, bound, typed)})


def test_only_inputs_and_families_ask_which_kind_of_input_a_model_has() -> None:
    asking = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if name.parts[0] not in ALLOWED:
            asking += [f"{name}:{line}" for line in asking_lines(path.read_text(encoding="utf-8"))]
    advice = "let a method of the kind (hf_longattn/inputs) decide, or a field of the family's rule"
    assert not asking, f"{', '.join(asking)} ask which kind of input there is; {advice}"


ASKING = """
if family.grid is None: pass
x = 1 if plan.sound else 2
while isinstance(size, GridKind): pass
assert len(model.towers)
[a for a in b if a.audio]
if getattr(model, "towers", None): pass
if "text" in (plan.towers or {}): pass
TABLE[kind.planned_as](plan)
TABLE.get(config.reads)
def f(page): return 1 if page else 2
def g(family):
    rule = family.grid
    return rule is None
"""
NOT_ASKING = """
kind.check(plan)
grid = family.grid
if family.two_stacks or family.rule.positions is None or grid.prefix or call.grid: pass
if len(set(rule.layer_grids(config, images.grid))) > 1: pass
def f(page: int, request): return 1 if page == 2 or request.towers is None else len(read(request.towers))
class Settings:
    towers: Any = setting(None)
    def check(self): return self.towers or {}
"""


def test_asking_lines_sees_every_way_to_ask() -> None:
    assert list(asking_lines(ASKING.strip())) == [*range(1, 11), 13]


def test_asking_lines_takes_nothing_else_for_the_kind() -> None:
    assert not list(asking_lines(NOT_ASKING))
