"""Labels for every call, function, class and import of real source files, and excerpts that ask several questions.

A question gives one answer to learn from; the text around it says much more: which name each argument is passed to and at which place,
which ``def`` a parameter belongs to, which import a base class comes from. :class:`Code` yields excerpts of real files with all of these as
pairs of characters ("guides", see :mod:`qa_guides`), in which names are replaced at random by names of other files, so that
nothing but structure tells the answer.
"""

from __future__ import annotations

import ast
import json
import keyword
import random
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from hf_longattn.staging import staged_file
from scripts.dev.studies import corpus
from scripts.dev.studies.code_questions import (
    LEAST_PARAMETERS,
    LONGEST_ARGUMENT,
    Parsed,
    callee_of,
    decorators,
    own_calls,
    receiver_of,
    words,
)
from scripts.dev.studies.qa_stream import Curriculum, distinct

CHARACTERS_PER_TOKEN = 3.1
_NAME = re.compile(r"[A-Za-z_]\w*")
_KEPT = frozenset({*keyword.kwlist, "self", "cls", "match", "case", "type", "super", "object", "_"})
_DEFINITION = re.compile(r"^[ \t]*(?:async def|def|class)\b", re.MULTILINE)
_LONGEST_FILE = 100_000


@dataclass
class Function:
    """A ``def``: character of its name, its name as questions give it, its parameters (without ``self``), its class's name or -1, and its
    header's and body's stretch."""

    at: int
    name: str
    parameters: list[tuple[int, str]]
    owner: int
    start: int
    body: int
    end: int
    unique: bool = True


@dataclass
class Call:
    """A call: character of the name called, its arguments with their places (-1 where a keyword says it), the numbers of the function that
    it is in and of the one that it calls (-1 = none, or not certain)."""

    at: int
    arguments: list[tuple[int, int, int]]
    inside: int
    target: int
    start: int
    end: int


@dataclass
class Class:
    """A ``class``: character of its name, its name, and its base classes."""

    at: int
    name: str
    bases: list[tuple[int, str]]


@dataclass
class Import:
    """``from module import …``: the module's stretch, and where each name is bound, with the name."""

    at: int
    module: str
    names: list[tuple[int, str]]
    end: int


@dataclass
class Labelled:
    """A file with its labels."""

    text: str
    functions: list[Function] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    classes: list[Class] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)

    @staticmethod
    def of(text: str) -> Labelled | None:
        """Label ``text``; None if it is not Python."""
        parsed = Parsed.of(text)
        return None if parsed is None else _label(parsed)

    @staticmethod
    def from_dict(row: Mapping[str, Any]) -> Labelled:
        """The inverse of ``dataclasses.asdict``."""
        functions = [Function(**{**one, "parameters": [(at, name) for at, name in one["parameters"]]}) for one in row["functions"]]
        calls = [Call(**{**one, "arguments": [tuple(argument) for argument in one["arguments"]]}) for one in row["calls"]]
        classes = [Class(**{**one, "bases": [(at, name) for at, name in one["bases"]]}) for one in row["classes"]]
        imports = [Import(**{**one, "names": [(at, name) for at, name in one["names"]]}) for one in row["imports"]]
        return Labelled(row["text"], functions, calls, classes, imports)


def _label(parsed: Parsed) -> Labelled:
    found = Labelled(parsed.text)
    defined = Counter(n.name for n in parsed.nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)))
    numbers: dict[ast.AST, int] = {}
    for name, definitions in parsed.functions.items():
        for node in definitions:
            at = parsed.name_start(node)
            if at < 0:
                continue
            owner = parsed.owner.get(node)
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            parameters = sorted((parsed.start(one), one.arg) for one in every if one is not None)
            if owner is not None and "staticmethod" not in decorators(node):
                parameters = parameters[1:]
            class_at = -1 if owner is None else parsed.name_start(owner)
            numbers[node] = len(found.functions)
            end = parsed.offset(node.end_lineno or 0, node.end_col_offset or 0)
            start, body = parsed.start(node), parsed.start(node.body[0])
            found.functions.append(Function(at, name, parameters, class_at, start, body, end, len(definitions) == 1))
    inside = {call: node for node in numbers for call in own_calls(node)}  # type: ignore[arg-type]
    for one in parsed.nodes:
        if isinstance(one, ast.Call):
            call = _call(parsed, one, inside.get(one), numbers, defined)
            if call is not None:
                found.calls.append(call)
        elif isinstance(one, ast.ClassDef) and (at := parsed.name_start(one)) >= 0:
            bases = [(parsed.start(base), base.id) for base in one.bases if isinstance(base, ast.Name)]
            found.classes.append(Class(at, one.name, bases))
        elif isinstance(one, ast.ImportFrom):
            module = "." * one.level + (one.module or "")
            match = re.compile(r"from[ \t]+([\w.]+)[ \t]+import\b").match(parsed.text, parsed.start(one))
            if match and match[1] == module and module.strip("."):
                names = [(parsed.start(alias), alias.asname or alias.name) for alias in one.names]
                end = parsed.offset(one.end_lineno or 0, one.end_col_offset or 0)
                found.imports.append(Import(match.start(1), module, names, end))
    return found


def _call(parsed: Parsed, node: ast.Call, function: Any, numbers: Mapping[ast.AST, int], defined: Counter[str]) -> Call | None:
    if not isinstance(node.func, (ast.Name, ast.Attribute)):
        return None
    name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
    at = parsed.offset(node.func.end_lineno or 0, node.func.end_col_offset or 0) - len(name)
    stretch = lambda value: (parsed.start(value), parsed.offset(value.end_lineno or 0, value.end_col_offset or 0))  # noqa: E731
    arguments, sure = [], True
    for place, value in enumerate(node.args):
        sure = sure and not isinstance(value, ast.Starred)
        arguments.append((*stretch(value), place if sure else -1))
    arguments += [(*stretch(one.value), -1) for one in node.keywords if one.arg is not None]
    target = -1
    if function is not None:
        owner = parsed.owner.get(function)
        found = callee_of(parsed, node, owner, receiver_of(function) if owner else None, defined, None)
        target = -1 if found is None or found[0] is function else numbers.get(found[0], -1)
    return Call(at, arguments, numbers.get(function, -1), target, *stretch(node))


class Names:
    """Names that replace others: those of functions, parameters and classes of many files, in one list."""

    def __init__(self, files: Iterable[Labelled]) -> None:
        found: dict[str, None] = {}
        for file in files:
            for function in file.functions:
                found.update(dict.fromkeys((function.name.rpartition(".")[2], *(name for _, name in function.parameters))))
            found.update(dict.fromkeys(one.name for one in file.classes))
        self.names = [name for name in found if name not in _KEPT and not name.startswith("__") and name.isascii()]

    def draw(self, like: str, taken: set[str], rng: random.Random) -> str:
        """A name that the text does not have, with a capital if ``like`` has one."""
        for _ in range(20):
            name = rng.choice(self.names)
            if name not in taken and name[0].isupper() == like[0].isupper():
                return name
        return like


def label_files(modules: Iterable[corpus.Module], cache: str | Path | None = None) -> list[Labelled]:
    """Label all files that have a call of one of their functions, or an imported base class.

    Args:
        modules: the files.
        cache: a .jsonl file that is read if it is there, and otherwise written.
    """
    path = None if cache is None else Path(cache)
    if path is not None and path.is_file():
        with path.open(encoding="utf-8") as file:
            return [Labelled.from_dict(json.loads(line)) for line in file]
    files = []
    for module in modules:
        if len(module.text) <= _LONGEST_FILE and (found := Labelled.of(module.text)) is not None and (_pairs(found) or _origins(found)):
            files.append(found)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(path) as stage, stage.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(one)) + "\n" for one in files)
    return files


def _pairs(file: Labelled) -> list[Call]:
    """The calls that can be asked about."""
    good = []
    for call in file.calls:
        known = call.target >= 0 and call.inside >= 0 and len(file.functions[call.target].parameters) >= 2
        if known and file.functions[call.inside].unique and any(place >= 0 for _, _, place in call.arguments):
            good.append(call)
    return good


def _origins(file: Labelled) -> list[tuple[Class, Import, int]]:
    """Classes whose only base is imported once: the class, the import, and where the base is bound."""
    bound = Counter(name for one in file.imports for _, name in one.names)
    classes = Counter(one.name for one in file.classes)
    where = {name: (one, at) for one in file.imports for at, name in one.names}
    found = []
    for one in file.classes:
        if len(one.bases) == 1 and classes[one.name] == 1 and bound[one.bases[0][1]] == 1:
            found.append((one, *where[one.bases[0][1]]))
    return found


class Code:
    """Excerpts of labelled files as a source of the training stream.

    Args:
        files: labelled files.
        names: what names are replaced by.
        base: share of the excerpts that ask where base classes come from; the others ask for parameters.
        tokens: shortest and longest excerpt.
        renamed: share of excerpts in which names are replaced.
        pack: most questions of one input.
    """

    def __init__(
        self,
        files: Sequence[Labelled],
        names: Names,
        *,
        base: float = 0.3,
        tokens: tuple[int, int] = (64, 430),
        renamed: float = 0.7,
        pack: int = 4,
    ) -> None:
        self.curriculum = Curriculum((None,))
        self.names, self.base, self.tokens, self.renamed, self.pack = names, base, tokens, renamed, pack
        self.calls = [(file, found) for file in files if (found := _pairs(file))]
        self.origins = [(file, classes) for file in files if (classes := _origins(file))]
        counts: list[list[int]] = [[len(calls) for _, calls in self.calls], [len(classes) for _, classes in self.origins]]
        self._weights = [list(accumulate(min(12, count) for count in several)) for several in counts]

    def documents(self, rng: random.Random) -> Iterator[list[dict[str, Any]]]:
        """Yield excerpts of about the same length for ever: the questions of each."""
        budget = rng.randint(*self.tokens)
        base = rng.random() < self.base
        while True:
            file, found = self._choose(base, rng)
            make = _Excerpt(file, int(budget * CHARACTERS_PER_TOKEN), rng)
            for one in rng.sample(found, min(len(found), rng.randint(1, 5))):
                make.need(one)
            made = make.records(base, self.names if rng.random() < self.renamed else None)
            if made and len(made[0]["context"]) > 0.88 * CHARACTERS_PER_TOKEN * budget:  # less padding
                kept = distinct(rng.sample(made, min(len(made), rng.randint(1, self.pack))))
                kept[0].update(guides=make.guides, places=make.places, regions=make.regions)
                yield kept

    def _choose(self, base: bool, rng: random.Random) -> tuple[Labelled, list[Any]]:
        weights = self._weights[base]
        several: Sequence[tuple[Labelled, list[Any]]] = self.origins if base else self.calls
        return several[bisect_right(weights, rng.randrange(weights[-1]))]


class _Excerpt:
    """Lines of a file, chosen for some questions, with what is asked and labelled in them."""

    def __init__(self, file: Labelled, budget: int, rng: random.Random) -> None:
        self.file, self.left, self.rng = file, budget, rng
        text = file.text
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]
        if self.starts[-1] == len(text):
            self.starts.pop()
        self.kept: set[int] = set()
        self.guides: dict[str, list[tuple[int, int]]] = {}
        self.places: list[tuple[int, int]] = []
        self.regions: list[tuple[str, int, int, int]] = []

    def line(self, character: int) -> int:
        return bisect_right(self.starts, character) - 1

    def _cost(self, line: int) -> int:
        return (self.starts[line + 1] if line + 1 < len(self.starts) else len(self.file.text)) - self.starts[line]

    def _keep(self, lines: Iterable[int]) -> bool:
        fresh = set(lines) - self.kept
        cost = sum(map(self._cost, fresh))
        if cost > self.left:
            return False
        self.kept |= fresh
        self.left -= cost
        return True

    def need(self, asked: Call | tuple[Class, Import, int]) -> None:
        """Keep what a question needs, if it fits."""
        file = self.file
        if isinstance(asked, Call):
            stretches = [(asked.start, asked.end)]
            for function in (file.functions[asked.inside], file.functions[asked.target]):
                stretches.append((function.start, function.body))
                if function.owner >= 0:
                    stretches.append((function.owner, function.owner))
        else:
            one, statement, _ = asked
            stretches = [(one.at, one.bases[0][0]), (statement.at, statement.end)]
        self._keep({line for first, last in stretches for line in range(self.line(first), self.line(last) + 1)})

    def _fill(self, base: bool) -> None:
        """Add lines around what is kept, and other definitions or imports."""
        if not self.kept:
            return
        rng, file, last = self.rng, self.file, len(self.starts)
        heads = [match.start() for match in _DEFINITION.finditer(file.text)]
        if base and file.imports and rng.random() < 0.7:
            heads = [one.at for one in file.imports]
        kept = sorted(self.kept)
        for _ in range(max(40, self.left // 40)):
            if self.left < 20:
                break
            if heads and rng.random() < 0.5:
                first = self.line(rng.choice(heads))
                chosen = range(first, min(last, first + rng.randint(2, 7)))
            else:
                middle = rng.choice(kept)
                chosen = range(max(0, middle - rng.randint(0, 5)), min(last, middle + rng.randint(1, 6)))
            if self._keep(chosen):
                kept.extend(chosen)

    def records(self, base: bool, names: Names | None) -> list[dict[str, Any]]:
        """The excerpt's questions; fills :attr:`guides` and :attr:`places`."""
        self._fill(base)
        if not self.kept:
            return []
        file, lines = self.file, sorted(self.kept)
        parts, shift, length = [], {}, 0
        for line in lines:
            start = self.starts[line]
            parts.append(file.text[start : start + self._cost(line)])
            shift[line] = length - start
            length += len(parts[-1])
        text = "".join(parts)
        renamed, starts, moves = _rename(text, names, self.rng)

        def moved(character: int) -> int:
            """The character in the excerpt; -1 if its line is not there."""
            line = bisect_right(self.starts, character) - 1
            if character < 0 or line not in shift:
                return -1
            place = character + shift[line]
            return place + moves[bisect_right(starts, place) - 1] if moves else place

        guides: dict[str, list[tuple[int, int]]] = {
            kind: [] for kind in ("previous", "class", "callee", "inside", "owner", "base", "same", "fetch", "named", "list")
        }

        def guide(kind: str, one: int, other: int) -> None:
            if one >= 0 and other >= 0:
                guides[kind].append((one, other))

        def region(kind: str, start: int, stop: int, target: int) -> None:
            """Every token from ``start`` to ``stop`` (or where the kept lines before it end) looks at ``target``."""
            line = bisect_right(self.starts, stop) - 1
            last = stop if line in shift else self.starts[lines[bisect_right(lines, line) - 1] + 1] - 1
            if 0 <= start < moved(last):
                self.regions.append((kind, start, moved(last), target))

        at_function = [moved(function.at) for function in file.functions]
        defined = Counter(function.name.rpartition(".")[2] for function, at in zip(file.functions, at_function, strict=True) if at >= 0)
        for function, at in zip(file.functions, at_function, strict=True):
            if at < 0:
                continue
            guides["named"].append((at, -1))
            guide("class", at, moved(function.owner))
            region("inside", at + 1, function.end, at)
            if function.parameters:
                region("owner", at + 1, function.parameters[-1][0] + 1, at)
            before, together = at, []
            for place, (parameter, _) in enumerate(function.parameters):
                here = moved(parameter)
                guide("owner", here, at)
                guide("fetch", here, at)
                following = function.parameters[place + 1][0] if place + 1 < len(function.parameters) else parameter + 1
                if here >= 0:
                    region("previous", here, following, before)
                    before = here
                    together.append(here)
                    guides["list"] += [(here, other) for other in together]
                if here >= 0:
                    self.places.append((here, place))
        asked: list[tuple[Call, list[tuple[int, int, int]]]] = []
        for call in file.calls:
            at = moved(call.at)
            if at < 0:
                continue
            spans = [(moved(first), moved(last), place) for first, last, place in call.arguments]
            if bisect_right(self.starts, call.end) - 1 in shift:
                region("callee", at + 1, call.end, at)
            before, together = at, []
            for first, last, place in spans:
                guide("callee", first, at)
                if place >= 0 and 0 <= first < last:
                    self.regions.append(("previous", first, last, before))
                    before = first
                    together.append(first)
                    guides["list"] += [(first, other) for other in together]
                if call.inside >= 0:
                    guide("inside", first, at_function[call.inside])
                if place >= 0 and first >= 0:
                    self.places.append((first, place))
            if call.target >= 0 and at_function[call.target] >= 0:
                guide("same", at, at_function[call.target])
                if call.inside >= 0 and at_function[call.inside] >= 0:
                    asked.append((call, spans))
        where: dict[str, tuple[int, int, Import]] = {}
        for statement in file.imports:
            module = moved(statement.at)
            if module >= 0:
                region("owner", module + len(statement.module), statement.end, module)
            for character, name in statement.names:
                here = moved(character)
                guide("owner", here, module)
                if here >= 0 and module >= 0:
                    guides["named"].append((here, -1))
                    where[name] = (here, module, statement)
        questions = [] if base else list(self._parameter_questions(asked, renamed, at_function, defined, moved))
        bound = Counter(name for one in file.imports for _, name in one.names)
        for one in file.classes:
            at = moved(one.at)
            for character, name in one.bases:
                here = moved(character)
                guide("callee", here, at)
                if name in where:
                    guide("same", here, where[name][0])
            if at >= 0 and len(one.bases) == 1:
                here, name = moved(one.bases[0][0]), one.bases[0][1]
                guide("base", at, here)
                if base and name in where and bound[name] == 1 and here >= 0:
                    alias, module, statement = where[name]
                    answer = renamed[module : moved(statement.at + len(statement.module))]
                    questions.append(self._origin(_word_at(renamed, at), answer, (at, here, alias, module)))
        self.guides = guides
        for question in questions:
            question["context"] = renamed
        return questions

    def _parameter_questions(
        self, asked: list[tuple[Call, list[tuple[int, int, int]]]], text: str, at_function: list[int], defined: Counter[str], moved: Any
    ) -> Iterator[dict[str, Any]]:
        passed: Counter[tuple[int, str]] = Counter()
        for call in self.file.calls:
            if call.inside >= 0:
                for first, last, _ in call.arguments:
                    start, stop = moved(first), moved(last)
                    if 0 <= start < stop:
                        passed[call.inside, text[start:stop]] += 1
        for call, spans in asked:
            caller, callee = self.file.functions[call.inside], self.file.functions[call.target]
            if not caller.unique or defined[callee.name.rpartition(".")[2]] > 1 or len(callee.parameters) < 2:
                continue
            parameters = [moved(at) for at, _ in callee.parameters]
            name_at, there = moved(call.at), at_function[call.target]
            owner = _word_at(text, moved(caller.owner)) + "." if caller.owner >= 0 and moved(caller.owner) >= 0 else ""
            if caller.owner >= 0 and not owner:
                continue
            name = owner + _word_at(text, at_function[call.inside])
            for first, stop, place in spans:
                if not (0 <= first < stop) or place < 0 or place >= len(parameters) or min(parameters) < 0:
                    continue
                argument, parameter = text[first:stop], _word_at(text, parameters[place])
                if passed[call.inside, argument] > 1 or "\n" in argument or "`" in argument or len(argument) > LONGEST_ARGUMENT:
                    continue
                if words(argument) & words(parameter) and (len(parameters) >= LEAST_PARAMETERS or self.rng.random() < 0.7):
                    continue
                if place == 0 and self.rng.random() < 0.15:  # half of all arguments are the first: knowing that must not do
                    continue
                yield {
                    "question": f"In `{name}`, which parameter receives `{argument}`?",
                    "answers": {"text": [parameter], "answer_start": [parameters[place]]},
                    "trail": [first, name_at, there, parameters[place]],
                    "place": place,
                }

    @staticmethod
    def _origin(name: str, module: str, trail: tuple[int, ...]) -> dict[str, Any]:
        return {
            "question": f"Which module does the base class of `{name}` come from?",
            "answers": {"text": [module], "answer_start": [trail[-1]]},
            "trail": list(trail),
        }


def _word_at(text: str, character: int) -> str:
    match = _NAME.match(text, character)
    return match[0] if match else ""


def _rename(text: str, names: Names | None, rng: random.Random) -> tuple[str, list[int], list[int]]:
    """Replace some names everywhere in ``text``.

    Returns:
        The new text, and for a character at or after ``starts[i]`` (and before the next) the number ``moves[i]`` to add to it; empty lists
        if nothing moves.
    """
    if names is None:
        return text, [], []
    share = rng.choice((0.2, 0.5, 0.8))
    found = list(_NAME.finditer(text))
    taken = {match[0] for match in found}
    new: dict[str, str] = {}
    for word in sorted(taken):
        if word not in _KEPT and not word.startswith("__") and rng.random() < share:
            new[word] = names.draw(word, taken, rng)
            taken.add(new[word])
    parts, starts, moves, at, move = [], [0], [0], 0, 0
    for match in found:
        other = new.get(match[0])
        if other is not None:
            parts += [text[at : match.start()], other]
            at = match.end()
            move += len(other) - len(match[0])
            starts.append(match.end())
            moves.append(move)
    parts.append(text[at:])
    return "".join(parts), starts, moves
