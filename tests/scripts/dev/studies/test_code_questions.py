"""Gold answers: arguments are bound as Python binds them, and what is not certain is not asked."""

from __future__ import annotations

import ast
import inspect

import pytest

from scripts.dev.studies.code_questions import Parsed, argument_questions, base_questions, bind

SOURCE = '''
import os

def cut(capacity, source, sink=None, *rest, flow=1, **options):
    return capacity

class Network:
    @staticmethod
    def make(size, weight, seed): ...

    def push(self, excess, height, labels):
        """Überraschung"""
        return excess

    def run(self, graph, nodes, i):
        self.push(graph, nodes[i + 1], "é")
        self.make(i, 2, nodes)
        return cut(graph.edges, nodes[0], os.sep, 7, i + 2, flow=3, slack=4)

def main(values):
    cut(*values, 11)
    cut(values, values)
    Network().push(1, 2, 3)
    cut("a source", 5, sink=values[0])
'''


def asked(source: str) -> dict[str, str]:
    parsed = Parsed.of(source)
    assert parsed is not None
    found = list(argument_questions(parsed))
    for question in found:
        assert source.startswith(question.answer, question.trail[-1])
    return {question.text: question.answer for question in found}


def test_argument_questions_have_the_parameters_that_python_gives() -> None:
    assert asked(SOURCE) == {
        "In `Network.run`, which parameter receives `graph`?": "excess",
        "In `Network.run`, which parameter receives `nodes[i + 1]`?": "height",
        'In `Network.run`, which parameter receives `"é"`?': "labels",
        "In `Network.run`, which parameter receives `i`?": "size",
        "In `Network.run`, which parameter receives `2`?": "weight",
        "In `Network.run`, which parameter receives `nodes`?": "seed",
        "In `Network.run`, which parameter receives `graph.edges`?": "capacity",
        "In `Network.run`, which parameter receives `nodes[0]`?": "source",
        "In `Network.run`, which parameter receives `os.sep`?": "sink",
        "In `Network.run`, which parameter receives `7`?": "rest",
        "In `Network.run`, which parameter receives `i + 2`?": "rest",
        'In `main`, which parameter receives `"a source"`?': "capacity",
        "In `main`, which parameter receives `5`?": "source",
    }


@pytest.mark.parametrize(
    ("call", "header"),
    [
        ("f(1, 2, 3)", "a, b, c"),
        ("f(1, 2, 3, 4, 5)", "a, b, *c"),
        ("f(1, 2, c=3)", "a, /, b, *, c"),
        ("f(1, 2, a=3)", "a, /, b, **c"),
        ("f(1, a=2)", "a, b"),
        ("f(1, 2, 3)", "a, b"),
        ("f(1, d=2)", "a, b=0"),
    ],
)
def test_binding_of_arguments_is_that_of_python(call: str, header: str) -> None:
    (definition,), node = ast.parse(f"def f({header}): return locals()").body, ast.parse(call, mode="eval").body
    assert isinstance(definition, ast.FunctionDef)
    assert isinstance(node, ast.Call)
    scope: dict = {}
    exec(ast.unparse(definition), scope)
    keywords = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    values = [ast.literal_eval(value) for value in node.args]
    pairs = bind(node, definition, bound_method=False)
    try:
        bound = inspect.signature(scope["f"]).bind(*values, **keywords).arguments
    except TypeError:
        assert pairs is None
        return
    assert pairs is not None
    assert len(pairs) == len(values)
    for value, parameter in pairs:
        received = bound[parameter.arg]
        number = ast.literal_eval(value)
        assert number in received if isinstance(received, tuple) else number == received


@pytest.mark.parametrize(
    ("before", "after", "gone"),
    [
        ("nodes[0]", "source[0]", "source[0]"),  # shares a word with its parameter
        ("sink=None, *rest, flow=1, **options", "**options", "graph.edges"),  # the call does not fit the definition
        ("(size, weight, seed)", "(size, weight, *, seed)", "i"),
        ("sink=values[0])", "sink=values[0])\ndef main(): ...", '"a source"'),  # the caller is defined twice
        ("capacity, source", "a, source", "graph.edges"),  # SQuAD's normalisation deletes the parameter's name
    ],
)
def test_code_questions_leave_out_what_is_not_certain(before: str, after: str, gone: str) -> None:
    changed = SOURCE.replace(before, after)
    assert changed != SOURCE
    assert len(asked(changed)) < len(asked(SOURCE))
    assert not any(f"receives `{gone}`" in text for text in asked(changed))


@pytest.mark.parametrize(
    "line", ["def cut(x, y, z): ...", "cut = print", "from x import cut", "def f(cut): ...", "class Other:\n    def cut(self): ..."]
)
def test_code_questions_do_not_ask_for_a_name_bound_twice(line: str) -> None:
    assert not any("os.sep" in text for text in asked(f"{SOURCE}\n{line}\n"))


def test_argument_questions_take_a_method_from_the_same_class() -> None:
    other = "class Other:\n    def push(self, alpha, beta, gamma): ...\n    def go(self, x): self.push(x, x + 1, 3)\n"
    found = asked(SOURCE + other)
    assert found["In `Other.go`, which parameter receives `x + 1`?"] == "beta"
    assert found["In `Network.run`, which parameter receives `graph`?"] == "excess"
    assert not any("Other" in text for text in asked(SOURCE + other + other))
    as_property = asked(SOURCE.replace("    def push", "    @property\n    def push"))
    assert "In `Network.run`, which parameter receives `graph`?" not in as_property


def test_base_questions_name_the_module_of_a_base_class() -> None:
    source = "from core.shapes import Polygon as Base\nfrom .units import Meter, Second\nimport tree\n"
    source += "class Square(Base): ...\nclass Length(Meter, Second): ...\nclass Time(Second): ...\nclass Oak(tree.Tree): ...\n"
    source += "class Unit(Second): ...\n"
    parsed = Parsed.of(source)
    assert parsed is not None
    found = {question.text: question.answer for question in base_questions(parsed)}
    assert found == {
        "Which module does the base class of `Square` come from?": "core.shapes",
        "Which module does the base class of `Time` come from?": ".units",
        "Which module does the base class of `Unit` come from?": ".units",
    }
