"""Data of the retrieval study: functions of whole packages to be found by their docstrings, and needles hidden in long files.

Nothing is downloaded: the code is the reference corpus (:mod:`corpus`), whose test packages no reference model has seen.
"""

from __future__ import annotations

import ast
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import PurePosixPath

from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import LengthError
from scripts.dev.studies.code_questions import Parsed
from scripts.dev.studies.corpus import Module

LEAST_WORDS, LEAST_LINES = 4, 3
"""Of a query, and of the function that it asks for."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Documented = ast.Module | ast.ClassDef | _Function


@dataclass(frozen=True)
class Function:
    """A function or method of a file.

    name: with its classes, ``Class.method``.
    start, end: its characters in the file, from its first decorator on.
    code: the same, without indentation.
    summary: the first paragraph of the docstring that was taken out of it, in one line; empty without one.
    """

    name: str
    start: int
    end: int
    code: str
    summary: str


@dataclass(frozen=True)
class SourceFile:
    """A module of a package without any docstring, and its functions in the order of the text."""

    path: str
    text: str
    functions: tuple[Function, ...]


@dataclass(frozen=True)
class Query:
    """A docstring's first paragraph, and the function that it was taken from, by its number among those of all files."""

    text: str
    function: int


def source_file(module: Module) -> SourceFile | None:
    """A module without the docstrings of its functions, its classes and itself; None where that cannot be done safely.

    A function inside another one is a part of it.
    """
    parsed = Parsed.of(module.text)
    if parsed is None:
        return None
    documented = [node for node in parsed.nodes if isinstance(node, _Documented) and ast.get_docstring(node, clean=False) is not None]
    text = module.text
    for node in sorted(documented, key=lambda one: parsed.start(one.body[0]), reverse=True):
        first = node.body[0]
        end = parsed.offset(first.end_lineno or 0, first.end_col_offset or 0)
        text = _without(text, parsed.start(first), end, needed=len(node.body) == 1 and not isinstance(node, ast.Module))
    bare = Parsed.of(text)
    if bare is None or any(isinstance(node, _Documented) and ast.get_docstring(node, clean=False) is not None for node in bare.nodes):
        return None
    before, after = list(_functions(parsed.tree)), list(_functions(bare.tree))
    if [name for name, _ in before] != [name for name, _ in after]:
        return None
    found = []
    for (name, old), (_, new) in zip(before, after, strict=True):
        start = bare.lines[min([new.lineno, *(decorator.lineno for decorator in new.decorator_list)]) - 1]
        end = bare.offset(new.end_lineno or 0, new.end_col_offset or 0)
        found.append(Function(name, start, end, cleandoc("\n" + text[start:end]), _summary(old)))
    return SourceFile(module.path, text, tuple(found))


def _without(text: str, start: int, end: int, needed: bool) -> str:
    """The text without a docstring, nor its lines if nothing else is on them; an ellipsis is left where a body needs a statement."""
    if needed:
        return f"{text[:start]}...{text[end:]}"
    line, following = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    following = len(text) if following < 0 else following + 1
    if not text[line:start].strip() and not text[end:following].strip():
        start, end = line, following
    return text[:start] + text[end:]


def _functions(node: ast.AST, owner: str = "") -> Iterator[tuple[str, _Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function):
            yield owner + child.name, child
        else:
            yield from _functions(child, f"{owner}{child.name}." if isinstance(child, ast.ClassDef) else owner)


def _summary(node: _Function) -> str:
    """The first paragraph of a docstring."""
    return " ".join((ast.get_docstring(node) or "").strip().split("\n\n")[0].split())


def is_test(path: str) -> bool:
    """Whether a file of a package holds its tests."""
    parts = PurePosixPath(path)
    return bool({"tests", "testing"} & set(parts.parts)) or parts.name.startswith(("test_", "conftest"))


@dataclass(frozen=True)
class CodeSearch:
    """All functions of whole packages, and docstrings that ask for some of them."""

    files: tuple[SourceFile, ...]
    queries: tuple[Query, ...]

    @property
    def functions(self) -> list[Function]:
        """Of all files, in order."""
        return [function for file in self.files for function in file.functions]

    @property
    def file_of(self) -> list[int]:
        """The file of each function."""
        return [number for number, file in enumerate(self.files) for _ in file.functions]


def code_search(modules: Iterable[Module]) -> CodeSearch:
    """Every function of the modules, tests left out, and a query for each function with a docstring.

    A docstring asks for exactly one function: it has at least four words, no other function has the same docstring or the same code,
    and the text of its file (comments, messages) does not repeat it. The function has at least three lines.
    """
    made = [file for module in modules if not is_test(module.path) and (file := source_file(module)) is not None]
    files = tuple(file for file in made if file.functions)
    pairs = [(file, function) for file in files for function in file.functions]
    summaries, codes = Counter(normal(one.summary) for _, one in pairs), Counter(normal(one.code) for _, one in pairs)
    queries = [
        Query(function.summary, number)
        for number, (file, function) in enumerate(pairs)
        if asks(function)
        and summaries[normal(function.summary)] == codes[normal(function.code)] == 1
        and normal(function.summary) not in normal(file.text)
    ]
    return CodeSearch(files, tuple(queries))


def asks(function: Function) -> bool:
    """Whether a function has a docstring and a body that are long enough to be asked for."""
    return len(function.summary.split()) >= LEAST_WORDS and function.code.count("\n") + 1 >= LEAST_LINES


def normal(text: str) -> str:
    """Text that differs only in white space and capitals is the same."""
    return " ".join(text.split()).lower()


def training_pairs(
    modules: Iterable[Module], count: int, *, avoid: Collection[str] = (), per_file: int = 1, characters: int | None = None, seed: int = 0
) -> list[dict[str, str]]:
    """Rows for ``longattn train embed``: docstring and function, or docstring and file.

    Args:
        modules: of training packages, in random order.
        count: rows at most.
        avoid: normalised docstrings and code of the evaluation, which no row may repeat (see :func:`texts_of`).
        per_file: rows of one file at most.
        characters: if given, the positive is the function's file, or a part of it of so many characters with the function at a random
            place; else the function alone.
        seed: of the choice.
    """
    avoided, rows = set(avoid), []
    for module in modules:
        file = None if is_test(module.path) else source_file(module)
        if file is None:
            continue
        choose = random.Random(f"{seed}:{file.path}")
        able = [one for one in file.functions if asks(one) and not {normal(one.summary), normal(one.code)} & avoided]
        for function in choose.sample(able, min(per_file, len(able))):
            rows.append({"anchor": function.summary, "positive": _positive(file, function, characters, choose)})
            avoided.add(normal(function.summary))
            if len(rows) == count:
                return rows
    return rows


def _positive(file: SourceFile, function: Function, characters: int | None, choose: random.Random) -> str:
    if characters is None:
        return function.code
    spare = max(0, characters - (function.end - function.start))
    start = max(0, min(function.start - choose.randint(0, spare), len(file.text) - characters))
    start = file.text.rfind("\n", 0, start) + 1
    return file.text[start : start + max(characters, function.end - start)]


def texts_of(search: CodeSearch) -> set[str]:
    """The normalised docstrings and code of a search, for ``avoid``."""
    return {normal(text) for one in search.functions for text in (one.summary, one.code) if text}


ADJECTIVES = (
    "amber", "ancient", "bitter", "brave", "bright", "broken", "calm", "clever", "cold", "crimson", "curious", "dusty", "eager", "early",
    "faint", "gentle", "golden", "green", "hidden", "hollow", "humble", "lazy", "lonely", "narrow", "noisy", "patient", "polite", "proud",
    "quiet", "silent", "silver", "young",
)  # fmt: skip
ANIMALS = (
    "badger", "beaver", "buffalo", "camel", "cheetah", "cobra", "crane", "dolphin", "eagle", "falcon", "ferret", "giraffe", "hamster",
    "hedgehog", "heron", "jackal", "leopard", "lobster", "magpie", "otter", "panther", "pelican", "penguin", "rabbit", "raven", "salmon",
    "spider", "squirrel", "turtle", "walrus", "weasel", "zebra",
)  # fmt: skip


@dataclass(frozen=True)
class Needle:
    """A sentence to hide, the question that it answers, and how deep it lies in its document, from 0 to 1."""

    line: str
    question: str
    depth: float


def needles(count: int, seed: int = 0) -> list[Needle]:
    """``count`` needles about different animals; any two share an adjective or an animal at most.

    Raises:
        LengthError: there are not as many names.
    """
    names = [f"{adjective} {animal}" for adjective in ADJECTIVES for animal in ANIMALS]
    if count > len(names):
        raise LengthError(f"there are {len(names):,} different needles, not {count:,}; ask for fewer documents")
    choose = random.Random(seed)
    keys = choose.sample(range(10_000, 100_000), count)
    return [
        Needle(f"# The pass key of the {name} is {key}.", f"What is the pass key of the {name}?", choose.random())
        for name, key in zip(choose.sample(names, count), keys, strict=True)
    ]


def needle_documents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, hidden: Sequence[Needle]) -> list[str]:
    """The first ``length`` tokens of every text, special tokens included, with one needle each as a line at its depth.

    Raises:
        LengthError: a text is shorter.
    """
    documents = []
    for text, needle in zip(texts, hidden, strict=True):
        spare = length - tokenizer.num_special_tokens_to_add() - len(tokenizer(f"\n{needle.line}\n", add_special_tokens=False)["input_ids"])
        read = tokenizer(text[: 12 * length], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if len(read["input_ids"]) < length:
            raise LengthError(f"a text has {len(read['input_ids']):,} tokens, but the documents have {length:,}; give longer texts")
        while True:  # tokens at the seams may split in another way
            lines = text[: read["offset_mapping"][spare][0]].split("\n")
            lines.insert(round(needle.depth * len(lines)), needle.line)
            document = "\n".join(lines)
            over = len(tokenizer(document, verbose=False)["input_ids"]) - length
            if over <= 0:
                break
            spare -= over
        documents.append(document)
    return documents


def long_texts(modules: Iterable[Module], tokenizer: PreTrainedTokenizerBase, length: int, count: int, seed: int = 0) -> list[str]:
    """``count`` of the modules that have at least ``length`` tokens, chosen at random.

    Raises:
        LengthError: there are fewer.
    """
    able = [one.text for one in modules if len(one.text) >= 2 * length]
    random.Random(seed).shuffle(able)
    found: list[str] = []
    for text in able:
        if len(found) < count and len(tokenizer(text[: 12 * length], add_special_tokens=False, verbose=False)["input_ids"]) >= length:
            found.append(text)
    if len(found) < count:
        raise LengthError(f"only {len(found)} files have {length:,} tokens; ask for at most as many documents")
    return found
