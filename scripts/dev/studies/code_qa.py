"""Documents for the questions of :mod:`code_questions`: whole files, files bundled across an import, short excerpts.

Packages are split as in :mod:`corpus`; the standard library, which the encoder was pre-trained on, is kept out of these questions'
training and is a second held-out set, "stdlib".
"""

from __future__ import annotations

import ast
import bisect
import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_longattn.data.sources import DataError
from hf_longattn.errors import OptionError
from scripts.dev.studies import corpus
from scripts.dev.studies.code_questions import Imported, Parsed, Question, argument_questions, askable, base_questions

TASKS = ("argument", "import", "base")
"""Argument → parameter in one file and across an import; origin of a base class."""
SPLITS = (*corpus.SPLITS, "stdlib")
HEADER = "# file: {}\n"
_LONGEST = 400_000


def modules_of(split: str) -> Iterator[corpus.Module]:
    """Yield the modules of a split; those of "train" without near duplicates and without the standard library."""
    if split == "stdlib":
        yield from (module for module in corpus.iter_modules("train") if module.package in corpus.STANDARD_LIBRARY)
    elif split == "train":
        held_out = (module for name in ("test", "validation", "stdlib") for module in modules_of(name))
        found = (module for module in corpus.iter_modules("train") if module.package not in corpus.STANDARD_LIBRARY)
        yield from corpus.without_near_duplicates(found, held_out)
    else:
        yield from corpus.iter_modules(split)


class Document:
    """A text with its questions; ``count`` gives the tokens of a text."""

    def __init__(self, title: str, text: str, questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase) -> None:
        self.title, self.text, self.questions, self.tokenizer = title, text, list(questions), tokenizer

    @cached_property
    def tokens(self) -> list[int]:
        """The first character of every token."""
        encoded = self.tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [start for start, _ in encoded["offset_mapping"]]

    @cached_property
    def lines(self) -> list[int]:
        """The first character of every line, and the end of the text."""
        starts = [0, *(match.end() for match in re.finditer("\n", self.text))]
        return starts if starts[-1] == len(self.text) else [*starts, len(self.text)]

    def distance(self, question: Question) -> int:
        """Tokens between where a reader finds the question's words and the answer."""
        first, last = (bisect.bisect_left(self.tokens, character) for character in (question.trail[0], question.start))
        return abs(last - first)

    def record(self, question: Question) -> dict[str, Any]:
        """The question over the whole text, SQuAD-shaped."""
        return _record(self.title, self.text, question, lambda character: character, len(self.tokens), self.distance(question))

    def excerpt(self, question: Question, budget: int, rng: random.Random) -> dict[str, Any] | None:
        """The question over some lines of the text, of at most ``budget`` tokens: those it needs, some around them, other definitions
        (for a base class mostly other imports).

        Returns:
            A SQuAD-shaped record; None if the lines it needs are longer.
        """
        kept: set[int] = set()
        for start, stop in question.needed:
            kept.update(range(self._line(start), self._line(stop) + 1))
        kept.update(line for line in map(self._header, tuple(kept)) if line is not None)
        cost, heads = self._costs, self._imports if question.kind == "base" and rng.random() < 0.7 else self._definitions
        left = budget - sum(cost[line] for line in kept)
        if left < 0:
            return None
        for _ in range(60):
            if rng.random() < 0.5 and heads:
                first = rng.choice(heads)
                chosen = range(first, min(len(cost), first + rng.randint(2, 6)))
            else:
                line = rng.choice(sorted(kept))
                chosen = range(max(0, line - rng.randint(0, 3)), min(len(cost), line + rng.randint(1, 4)))
            fresh = set(chosen) - kept
            price = sum(cost[line] for line in fresh)
            if price <= left:
                kept |= fresh
                left -= price
        text, moved = "", {}
        for line in sorted(kept):
            start, stop = self._spans[line]
            moved[line] = len(text) - start
            text += self.text[start:stop]
        tokens = len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return _record(self.title, text, question, lambda character: character + moved[self._line(character)], tokens, None)

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        return list(pairwise(self.lines))

    @cached_property
    def _costs(self) -> list[int]:
        """The tokens of every line."""
        before = [bisect.bisect_left(self.tokens, start) for start in self.lines]
        return [after - here for here, after in pairwise(before)]

    @cached_property
    def _imports(self) -> list[int]:
        """The lines that import from a module: other candidates for where a base class comes from."""
        return [self._line(match.start(1)) for match in re.finditer(r"^[ \t]*(from)\b.*\bimport\b", self.text, re.MULTILINE)]

    @cached_property
    def _definitions(self) -> list[int]:
        """The lines that open a function or a class."""
        return [self._line(match.start(1)) for match in re.finditer(r"^[ \t]*(async def|def|class)\b", self.text, re.MULTILINE)]

    def _line(self, character: int) -> int:
        return min(bisect.bisect_right(self.lines, character) - 1, len(self.lines) - 2)

    def _header(self, line: int) -> int | None:
        """The ``# file:`` line above a line of a bundle."""
        at = self.text.rfind(HEADER[:8], 0, self.lines[line] + 8)
        return None if at < 0 or not (at == 0 or self.text[at - 1] == "\n") else self._line(at)


def _record(title: str, text: str, question: Question, moved: Callable[[int], int], tokens: int, distance: int | None) -> dict[str, Any]:
    trail = [moved(character) for character in question.trail]
    return {
        "id": f"{title}:{question.kind}:{question.trail[0]}:{question.start}",
        "title": title,
        "context": text,
        "question": question.text,
        "answers": {"text": [question.answer], "answer_start": [moved(question.start)]},
        "tokens": tokens,
        "distance": abs(trail[0] - trail[-1]) if distance is None else distance,
        "place": question.place,
        "trail": trail,
        "links": [[moved(start), moved(stop)] for start, stop in question.links],
    }


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Read the records of a .jsonl file with all their columns."""
    if not Path(path).is_file():
        raise DataError(f"{str(path)!r} does not exist; write it with python -m scripts.dev.studies.build_qa")
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def build_code_qa(
    task: str,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    min_tokens: int = 1000,
    max_tokens: int = 8000,
    min_distance: int = 512,
    per_file: int = 6,
    limit: int | None = None,
    short: tuple[int, int] | None = None,
    variants: int = 1,
    modules: Iterable[corpus.Module] | None = None,
    seed: int = 0,
    left_out: Counter[str] | None = None,
) -> list[dict[str, Any]]:
    """Build the questions of one task and split.

    Args:
        task: one of :data:`TASKS`.
        split: one of :data:`SPLITS`.
        tokenizer: measures the documents.
        min_tokens, max_tokens: lengths of documents.
        min_distance: fewest tokens between the call (the class) and the answer.
        per_file: most questions per file, chosen by the seed (of an import: per calling file).
        limit: stop after so many documents' questions; files come in an order that the seed gives.
        short: two numbers: ask the same questions over excerpts of so many tokens, whatever the length and distance in the whole document.
        variants: excerpts per question.
        modules: these modules instead of the split's.
        seed: of every choice.
        left_out: filled with the numbers of what was left out, by reason.
    """
    if task not in TASKS:
        raise OptionError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    if split not in SPLITS:
        raise OptionError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    left_out = Counter() if left_out is None else left_out
    found = sorted(modules_of(split) if modules is None else modules, key=lambda module: module.path)
    order = list(found)
    random.Random(f"{seed}:{task}:{split}").shuffle(order)
    longest = 2 * max_tokens if short else max_tokens
    documents = (
        _bundles(order, tokenizer, longest, per_file, seed, left_out)
        if task == "import"
        else _files(order, task, tokenizer, longest, left_out)
    )
    records: list[dict[str, Any]] = []
    asked: Counter[str] = Counter()
    for document in documents:
        rng = random.Random(f"{seed}:{document.title}")
        fitting = document.questions if short else _fitting(document, min_tokens, max_tokens, min_distance, left_out)
        file = document.title.partition(" ")[0]
        chosen = rng.sample(fitting, min(max(0, per_file - asked[file]), len(fitting)))
        asked[file] += len(chosen)
        left_out[f"more than {per_file} in the file"] += len(fitting) - len(chosen)
        for question in chosen:
            for number in range(variants if short else 1):
                record = document.excerpt(question, rng.randint(*short), rng) if short else document.record(question)
                if record is None:
                    left_out["does not fit the excerpt"] += 1
                else:
                    records.append({**record, "id": f"{record['id']}:{number}"})
        if limit is not None and len(records) >= limit:
            break
    return records[:limit]


def _fitting(document: Document, min_tokens: int, max_tokens: int, min_distance: int, left_out: Counter[str]) -> list[Question]:
    """The questions that a whole document is asked."""
    if not min_tokens <= len(document.tokens) <= max_tokens:
        left_out["document too short or too long"] += len(document.questions)
        return []
    far = [question for question in document.questions if document.distance(question) >= min_distance]
    left_out[f"answer within {min_distance} tokens"] += len(document.questions) - len(far)
    return far


def _readable(modules: Iterable[corpus.Module], longest: int, left_out: Counter[str]) -> Iterator[tuple[corpus.Module, Parsed]]:
    """Yield the files of at most ``longest`` characters that parse, each with its tree."""
    for module in modules:
        if len(module.text) > longest:
            left_out["file far too long"] += 1
            continue
        parsed = Parsed.of(module.text)
        if parsed is None:
            left_out["file does not parse"] += 1
            continue
        yield module, parsed


def _files(
    modules: Iterable[corpus.Module], task: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int, left_out: Counter[str]
) -> Iterator[Document]:
    """Yield every file that has a question."""
    for module, parsed in _readable(modules, max_tokens * 8, left_out):
        questions = list((argument_questions if task == "argument" else base_questions)(parsed, left_out))
        if questions:
            yield Document(module.path, module.text, questions, tokenizer)


def _bundles(
    modules: Sequence[corpus.Module], tokenizer: PreTrainedTokenizerBase, max_tokens: int, per_file: int, seed: int, left_out: Counter[str]
) -> Iterator[Document]:
    """Yield bundles: a file, another one that defines a function which the first imports and calls, and distractors of the same package, in
    random order and of a random length; at most ``per_file`` per calling file."""
    by_package: dict[str, list[corpus.Module]] = defaultdict(list)
    defining: dict[tuple[str, str], list[corpus.Module]] = defaultdict(list)
    for module in sorted(modules, key=lambda module: module.path):
        by_package[module.package].append(module)
        for name in re.findall(r"^def (\w+)", module.text, re.MULTILINE):
            defining[module.package, name].append(module)
    definitions: dict[str, dict[str, ast.FunctionDef]] = {}
    lengths: dict[str, int] = {}

    def measure(module: corpus.Module) -> int:
        if module.path not in lengths:
            lengths[module.path] = len(tokenizer(module.text, add_special_tokens=False, verbose=False)["input_ids"])
        return lengths[module.path]

    for module, parsed in _readable(modules, _LONGEST, left_out):
        rng = random.Random(f"{seed}:{module.path}")
        called = _called(parsed, module, defining)
        made = 0
        for function, (source, calls) in rng.sample(called, len(called)):
            if source.path not in definitions:
                definitions[source.path] = _functions(source)
            definition = definitions[source.path].get(function.name)
            if definition is None or not askable(parsed, calls, definition):
                continue
            target = int(math.exp(rng.uniform(math.log(1200), math.log(max_tokens - 40))))
            places = [(module, {call.lineno for call in calls}), (source, {definition.lineno})]
            parts = [
                _cut(part, lines, target // 2, measure, rng) or _cut(part, lines, max_tokens // 2, measure, rng) for part, lines in places
            ]
            pair = [part for part in parts if part is not None]
            if len(pair) < 2:
                left_out["files too long together"] += 1
                continue
            pair += _distractors(pair, function.name, by_package[module.package], measure, target, rng)
            rng.shuffle(pair)
            text = "\n".join(HEADER.format(part.path) + part.text for part in pair)
            bundle = Parsed.of(text)
            left_out["bundle does not parse"] += bundle is None
            questions = [] if bundle is None else list(argument_questions(bundle, left_out, imported=function))
            if questions:
                yield Document(f"{module.path} + {source.path}: {function.name}", text, questions, tokenizer)
                made += 1
            if made == per_file:
                break


def _called(
    parsed: Parsed, module: corpus.Module, defining: Mapping[tuple[str, str], Sequence[corpus.Module]]
) -> list[tuple[Imported, tuple[corpus.Module, list[ast.Call]]]]:
    """The functions of other files that a file imports, by name or with their package: each with the one file that defines it, and its
    calls."""
    found: dict[Imported, tuple[corpus.Module, list[ast.Call]]] = {}
    names = {alias.name for node in parsed.nodes if isinstance(node, ast.ImportFrom) for alias in node.names if not alias.asname}
    packages = {
        alias.asname or alias.name
        for node in parsed.nodes
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == module.package and parsed.bound[alias.asname or alias.name] == 1
    }
    for node in parsed.nodes:
        if not isinstance(node, ast.Call):
            continue
        function = Imported(getattr(node.func, "id", getattr(node.func, "attr", "")), frozenset(packages))
        if not function.called_by(node):
            function = Imported(function.name)
            if function.name not in names or not function.called_by(node):
                continue
        sources = defining.get((module.package, function.name), [])
        if len(sources) == 1 and sources[0].path != module.path:
            found.setdefault(function, (sources[0], []))[1].append(node)
    return list(found.items())


def _functions(module: corpus.Module) -> dict[str, ast.FunctionDef]:
    """The functions at a file's top level."""
    parsed = Parsed.of(module.text)
    return {} if parsed is None else {node.name: node for node in parsed.tree.body if isinstance(node, ast.FunctionDef)}


def _cut(
    module: corpus.Module, lines: set[int], most: int, measure: Callable[[corpus.Module], int], rng: random.Random
) -> corpus.Module | None:
    """A file of at most ``most`` tokens: whole, or its imports and a run of top-level statements around one that has one of the ``lines``;
    None if that statement alone is longer."""
    if len(module.text) <= 8 * most and measure(module) <= most:
        return module
    parsed = Parsed.of(module.text)
    if parsed is None:
        return None
    body = parsed.tree.body
    first_lines = [min([s.lineno, *(d.lineno for d in getattr(s, "decorator_list", ()))]) for s in body]
    starts = [parsed.lines[line - 1] for line in first_lines]
    texts = [module.text[start:stop] for start, stop in zip(starts, [*starts[1:], len(module.text)], strict=True)]
    imports = [place for place, s in enumerate(body) if isinstance(s, (ast.Import, ast.ImportFrom))]
    middle = rng.choice([place for place, s in enumerate(body) if any(first_lines[place] <= line <= (s.end_lineno or 0) for line in lines)])
    kept, left = {middle, *imports}, most - sum(len(texts[place]) for place in {middle, *imports}) // 3
    first = last = middle
    while left > 0 and (first > 0 or last + 1 < len(body)):
        place = first - 1 if last + 1 == len(body) or (first > 0 and rng.random() < 0.5) else last + 1
        first, last = min(first, place), max(last, place)
        if place not in kept and (left := left - len(texts[place]) // 3) > 0:
            kept.add(place)
    shorter = corpus.Module(module.package, module.path, "".join(texts[place] for place in sorted(kept)))
    return shorter if len(shorter.text) <= 4 * most else None


def _distractors(
    pair: Sequence[corpus.Module],
    name: str,
    others: Sequence[corpus.Module],
    measure: Callable[[corpus.Module], int],
    target: int,
    rng: random.Random,
) -> Iterator[corpus.Module]:
    """Yield files of the package that do not mention the function, until the bundle has ``target`` tokens."""
    left = target - sum(len(part.text) // 3 for part in pair)
    names = set(re.findall(r"^[ \t]*(?:def|class)[ \t]+(\w+)", pair[0].text, re.MULTILINE))
    for other in rng.sample(others, min(40, len(others))):
        if left < 50:
            return
        if other.path in {part.path for part in pair} or len(other.text) > 8 * left or re.search(rf"\b{name}\b", other.text):
            continue
        if names & set(re.findall(r"^(?:def|class)[ \t]+(\w+)", other.text, re.MULTILINE)) or measure(other) + 20 > left:
            continue
        left -= measure(other) + 20
        yield other
