"""Small programs recombined from real ones: endless practice for argument → parameter, from easy to hard.

Names of functions, their parameters and the arguments of calls are harvested from source files; a document is a handful of functions with
such headers, some of which call others, between lines of real source.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from research.code_qa import places_of
from research.code_questions import LEAST_PARAMETERS, words

_HEADER = re.compile(r"^[ \t]*def (\w+)\(([\w, =.\"'\[\]:|-]*)\)", re.MULTILINE)
_CALL = re.compile(r"\w\(([^()\n]{1,60}(?:\([^()\n]{0,30}\)[^()\n]{0,30})?)\)")


@dataclass(frozen=True)
class ProgramShape:
    """How hard a document is: numbers of functions that are called, of calls, of filler lines between any two pieces (at most), of
    parameters (at most)."""

    functions: int
    calls: int
    filler: int
    parameters: int


PROGRAMS = (
    ProgramShape(2, 1, 0, 3),
    ProgramShape(2, 2, 0, 4),
    ProgramShape(3, 2, 1, 4),
    ProgramShape(4, 3, 2, 6),
    ProgramShape(5, 4, 4, 7),
)
"""From 40 tokens to the length of a 512-position model."""


class Pieces:
    """What programs are made of: ``functions`` (name, parameters), ``arguments`` and source ``lines``."""

    def __init__(self, texts: Iterable[str], most: int = 100_000) -> None:
        functions: dict[str, tuple[str, ...]] = {}
        arguments: dict[str, None] = {}
        self.lines: list[str] = []
        for text in texts:
            for name, inside in _HEADER.findall(text):
                parameters = tuple(
                    word for part in inside.split(",") if (word := re.split(r"[ =:]", part.strip(), maxsplit=1)[0]).isidentifier()
                )
                if len(parameters) >= LEAST_PARAMETERS and len(set(parameters)) == len(parameters) and not name.startswith("__"):
                    functions[name] = parameters
            for inside in _CALL.findall(text):
                try:
                    call = ast.parse(f"f({inside})", mode="eval").body
                except (SyntaxError, ValueError):
                    continue
                if isinstance(call, ast.Call):
                    arguments.update({ast.unparse(value): None for value in call.args if not isinstance(value, ast.Starred)})
            self.lines += [line + "\n" for line in text.splitlines() if len(line) < 100 and not re.search(r'def |class |"""', line)]
            if len(functions) >= most:
                break
        self.functions = list(functions.items())
        self.arguments = [text for text in arguments if "`" not in text and "\n" not in text and 0 < len(text) < 40]

    def function(self, most: int, rng: random.Random) -> tuple[str, list[str]]:
        """Return a name and 3 … ``most`` parameters; ``self`` is not one of them."""
        while True:
            name, parameters = rng.choice(self.functions)
            kept = [parameter for parameter in parameters if parameter not in ("self", "cls")]
            if len(kept) >= LEAST_PARAMETERS:
                return name, kept[:most]


def make_program(pieces: Pieces, shape: ProgramShape, rng: random.Random) -> list[dict[str, Any]]:
    """Make a document; return a record per argument that can be asked for, and one whose function's ``def`` is not there, last.

    The records are as those of :mod:`research.code_qa`: trails, links and places (of each argument and parameter) included.
    """
    functions: dict[str, list[str]] = {}
    while len(functions) < shape.functions + 2:
        name, parameters = pieces.function(shape.parameters, rng)
        functions[name] = parameters
    callers = [functions.popitem() for _ in range(2)]
    blocks = [[_Line("def {}({}):", name, parameters)] for name, parameters in functions.items()]
    calls = []
    for number in range(shape.calls):
        name = rng.choice(list(functions))
        arguments = rng.sample(pieces.arguments, rng.randint(2, len(functions[name])))
        calls.append((callers[number % 2][0], name, arguments))
    for caller, parameters in callers:
        own = [
            _Line(rng.choice(["    {}({})", "    return {}({})", "    x = {}({})"]), name, values)
            for c, name, values in calls
            if c == caller
        ]
        if own:
            blocks.append([_Line("def {}({}):", caller, parameters), *own])
    rng.shuffle(blocks)
    context = ""
    at: dict[str, list[int]] = {}
    for block in blocks:
        for line in block:
            context += line.write(len(context), at)
            context += _filler(pieces, shape.filler, rng)
    records = []
    asked = [(caller, value) for caller, _, values in calls for value in values]
    links = [[start, spans[0]] for spans in at.values() for start in spans[1:]]
    for caller, name, values in calls:
        here, there = at[f"{name}({', '.join(values)})"], at[f"{name}({', '.join(functions[name])})"]
        for place, (value, parameter) in enumerate(zip(values, functions[name], strict=False)):
            if words(value) & words(parameter) or asked.count((caller, value)) > 1:
                continue
            records.append(
                {
                    "id": "",
                    "context": context,
                    "question": f"In `{caller}`, which parameter receives `{value}`?",
                    "answers": {"text": [parameter], "answer_start": [there[place + 1]]},
                    "trail": [here[place + 1], here[0], there[0], there[place + 1]],
                    "links": links,
                    "places": places_of(links),
                }
            )
    return records


@dataclass
class _Line:
    """``form`` with a name and a list of words; :meth:`write` notes where they start."""

    form: str
    name: str
    words: list[str]

    def write(self, start: int, at: dict[str, list[int]]) -> str:
        before = start + self.form.index("{")
        starts, place = [before], before + len(self.name) + 1
        for word in self.words:
            starts.append(place)
            place += len(word) + 2
        at[f"{self.name}({', '.join(self.words)})"] = starts
        return self.form.format(self.name, ", ".join(self.words)) + "\n"


def _filler(pieces: Pieces, most: int, rng: random.Random) -> str:
    count = rng.randint(0, most)
    start = rng.randrange(max(1, len(pieces.lines) - count))
    return "".join(pieces.lines[start : start + count])
