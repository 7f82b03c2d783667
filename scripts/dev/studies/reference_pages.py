"""Reference pages of the installed packages, made from their signatures and docstrings, and questions that a rule can answer.

A page lists the classes and functions of a folder of modules as documentation generators print them. Every question asks for the first
sentence of a docstring:

* *one place*: "How is `Foo` described?" The answer stands below that name.
* *two places*: "How is the class that `Foo` extends described?", "… that `read` returns", "… that `read` takes as `source`". The entry of
  `Foo` names the class, and the answer stands below the class, at least :data:`FAR` tokens from `Foo`.
* *none*: the same questions about a class or an entry that is not on the page.

Packages are split: no package of the test is trained on. Python's own library is left out, since the project's test of retrieval has its
documentation.
"""

from __future__ import annotations

import ast
import bisect
import random
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import LongAttentionError

PACKAGES = {
    "train": """anyio babel jedi joblib mpmath mypyc onnx onnx_ir onnxscript parso pygments sphinx sqlalchemy sympy torch torchao
        transformers""",
    "validation": "accelerate fsspec jupyter_client pip",
    "test": """_pytest absl aiohttp attr bs4 click datasets dateutil debugpy docutils evaluate filelock fontTools google hatchling
        httpcore2 httpx2 huggingface_hub hypothesis IPython jinja2 jsonschema markdown_it matplotlib mdit_py_plugins mpl_toolkits mypy
        myst_nb myst_parser narwhals nbformat networkx nltk numpy onnxruntime packaging pandas peft pexpect PIL prompt_toolkit psutil
        pyarrow pydantic pyparsing requests rich scipy sentence_transformers setuptools sklearn soupsieve tomlkit torchgen tornado tqdm
        traitlets typer urllib3 wcwidth zmq""",
}
KINDS = ("one place", "two places", "none")
LENGTHS = (1000, 3900)
"""Tokens of a page, drawn between these."""
FAR = 512
"""Fewest tokens between the two places of a question of the test."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_CHARACTERS = 3.6  # of a token, on these pages
_LONGEST_DOC = 2000  # characters; a longer docstring ends with its last whole paragraph before them
_SKIPPED = frozenset({"tests", "test", "testing", "_vendor", "_vendored", "__pycache__"})
_ORDINARY = frozenset(
    {"how", "is", "the", "class", "that", "described", "as", "a", "an", "of", "in", "to", "for", "and", "or", "with", "by", "on"}
)


@dataclass(frozen=True)
class Entry:
    """A class, a function or a method ("Class.method") of a page.

    Attributes:
        head: its first line.
        doc: its docstring.
        answer: the first sentence of the docstring, or "" where that is no short line.
        relations: (words of a question, name of a class) for each class that it names.
        start, answer_start: characters of the page.
    """

    name: str
    head: str
    doc: str
    answer: str
    relations: tuple[tuple[str, str], ...] = ()
    start: int = -1
    answer_start: int = -1

    @property
    def is_class(self) -> bool:
        return self.head.startswith("class ")

    def text(self, lines: int | None = None) -> str:
        """The entry as it is printed, with so many lines of the docstring."""
        return f"\n{self.head}\n" + "".join(f"    {line}".rstrip() + "\n" for line in self.doc.splitlines()[:lines])


@dataclass
class Page:
    """A page: its ``text``, and the ``entries`` in it with their places."""

    title: str
    text: str = ""
    entries: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.text = self.text or f"{self.title}\n"

    def add(self, entry: Entry, lines: int | None = None) -> None:
        """Print an entry at the end."""
        start = len(self.text) + 1
        answer_start = start + len(entry.head) + len("\n    ") if entry.answer else -1
        self.text += entry.text(lines)
        self.entries.append(replace(entry, start=start, answer_start=answer_start))

    @cached_property
    def unique(self) -> dict[str, Entry]:
        """The entries whose name stands for one entry alone."""
        count = Counter(entry.name for entry in self.entries)
        return {entry.name: entry for entry in self.entries if count[entry.name] == 1}

    @cached_property
    def described(self) -> dict[str, Entry]:
        """Those of :attr:`unique` with an answer that no other entry has."""
        count = Counter(entry.answer for entry in self.entries)
        return {name: entry for name, entry in self.unique.items() if entry.answer and count[entry.answer] == 1}


def first_sentence(doc: str) -> str:
    """The first sentence of a docstring; "" unless it is one line of 15 to 100 characters that begins with a capital."""
    match = re.match(r"[A-Z](?:[^.\n]|\.(?!\s|$))*\.?(?=\s|$)", doc)
    sentence = match[0].strip() if match else ""
    if not sentence.endswith((".", ":")) and re.match(r" *\n[^\n]", doc[len(sentence) :]):
        return ""  # it goes on in the next line
    return sentence if 15 <= len(sentence) <= 100 and sentence.isascii() and len(sentence.split()) > 2 else ""


def class_in(annotation: ast.expr | None) -> str | None:
    """The class that an annotation names: of ``Foo``, ``"Foo"``, ``Foo | None`` and ``Optional[Foo]``; None for all others."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        match = re.fullmatch(r"(?:Optional\[)?(\w+)(?:\]| \| None)?", annotation.value)
        return match[1] if match else None
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.right, ast.Constant) and annotation.right.value is None:
        return class_in(annotation.left)
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name) and annotation.value.id == "Optional":
        return class_in(annotation.slice)
    return annotation.id if isinstance(annotation, ast.Name) else None


def entries_of(tree: ast.Module) -> Iterator[Entry]:
    """Yield what a reference page lists of a module: classes, functions and methods with a docstring."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = [child for child in node.body if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and _doc(child)]
            if _doc(node) or methods:
                base = class_in(node.bases[0]) if len(node.bases) == 1 else None
                head = f"class {node.name}({', '.join(map(ast.unparse, node.bases))})"
                relations = (("class that `{}` extends", base),) if base else ()
                yield Entry(node.name, head, _doc(node), first_sentence(_doc(node)), relations)
            yield from (_function(child, f"{node.name}.{child.name}") for child in methods)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _doc(node):
            yield _function(node, node.name)


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> Entry:
    named = [("class that `{}` returns", class_in(node.returns))]
    named += [(f"class that `{{}}` takes as `{one.arg}`", class_in(one.annotation)) for one in (*node.args.args, *node.args.kwonlyargs)]
    relations = tuple((words, found) for words, found in named if found and found[0].isupper() and found not in ("Any", "Self"))
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return Entry(name, f"{name}({ast.unparse(node.args)}){returns}", _doc(node), first_sentence(_doc(node)), relations)


def _doc(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    doc = (ast.get_docstring(node) or "").strip()
    return doc if len(doc) <= _LONGEST_DOC else doc[: max(0, doc.rfind("\n\n", 0, _LONGEST_DOC))]


def pages_of(package: str, lengths: tuple[int, int] = LENGTHS) -> Iterator[Page]:
    """Yield the pages of an installed package, folder by folder; the same for the same version.

    Args:
        lengths: fewest and most tokens, about; the last page of a folder may be shorter.

    Raises:
        LongAttentionError: it is not installed.
    """
    site = Path(sysconfig.get_paths()["purelib"])
    if not (site / package).is_dir():
        raise LongAttentionError(f"the package {package!r} is not installed here; make install installs it")
    folders: dict[str, list[tuple[str, Entry]]] = defaultdict(list)
    for file in sorted((site / package).rglob("*.py")):
        parts = file.relative_to(site).with_suffix("").parts
        if not _SKIPPED & set(parts):
            folders[".".join(parts[:-1])] += [(".".join(parts).removesuffix(".__init__"), entry) for entry in _entries_in(file)]
    for title, found in folders.items():
        rng, page, before = random.Random(title), Page(title), ""
        longest = rng.randint(*lengths)
        for module, entry in found:
            if page.entries and len(page.text + entry.text()) / _CHARACTERS > longest:
                yield page
                page, before, longest = Page(title), "", rng.randint(*lengths)
            if module != before:
                page.text += f"\nModule {module}\n"
                before = module
            page.add(entry)
        if page.entries:
            yield page


def _entries_in(file: Path) -> list[Entry]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources
            return list(entries_of(ast.parse(file.read_text(encoding="utf-8"))))
    except (SyntaxError, ValueError, RecursionError):
        return []


@dataclass(frozen=True)
class Question:
    """A question about a page: the entry that it names, the one that answers it (None: the page does not), and the name of the class that
    the first one leads to."""

    kind: str
    text: str
    asked: Entry | None
    target: Entry | None
    leads_to: str = ""

    def near(self, tokens: int) -> bool:
        """Whether its places seem to be less than so many tokens apart."""
        return bool(self.asked and self.target and abs(self.asked.start - self.target.answer_start) < tokens * _CHARACTERS)

    def record(self, page: Page) -> dict[str, Any]:
        """The question, SQuAD-shaped, with its kind as ``places``, since the training has a column ``kind`` of its own."""
        found = [self.target] if self.target else []
        answers = {"text": [entry.answer for entry in found], "answer_start": [entry.answer_start for entry in found]}
        name = f"{page.title}:{self.asked.start if self.asked else ''}:{self.text}"
        return {"id": name, "title": page.title, "context": page.text, "question": self.text, "answers": answers, "places": self.kind}

    def measured(self, page: Page, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """The record with ``tokens`` of the page and the ``distance`` of the question's places in tokens."""
        encoded = tokenizer(page.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = [start for start, _ in encoded["offset_mapping"]]
        distance = 0
        if self.asked and self.target:
            distance = abs(bisect.bisect_left(starts, self.asked.start) - bisect.bisect_left(starts, self.target.answer_start))
        return {**self.record(page), "tokens": len(starts), "distance": distance}


def questions_of(page: Page, elsewhere: Sequence[str] = ()) -> Iterator[Question]:
    """Yield all questions of a page; the names of ``elsewhere`` that it does not contain give questions without an answer."""
    for entry in page.described.values():
        yield Question("one place", f"How is `{entry.name}` described?", entry, entry)
    for entry in page.unique.values():
        for relation, name in entry.relations:
            text = f"How is the {relation.format(entry.name)} described?"
            target = page.described.get(name)
            if target is not None and target.is_class and name != entry.name.partition(".")[0]:
                yield Question("two places", text, entry, target, name)
            elif not re.search(rf"class {name}\b", page.text):
                yield Question("none", text, entry, None, name)
    for name in elsewhere:
        if name not in page.text:
            yield Question("none", f"How is `{name}` described?", None, None)


def excerpt(
    page: Page, question: Question, budget: int, rng: random.Random, *, mixed: bool = False, whole: bool = False
) -> tuple[Page, Question]:
    """A page of some entries of ``page``, in its order, with the first lines of their docstrings: those that the question needs, and
    others, classes above all, as far as about ``budget`` tokens go.

    Args:
        mixed: deal the docstrings out anew, so that no answer can be guessed from what describes a name.
        whole: print whole docstrings, and entries whatever their length.

    Returns:
        The page, and the question about it.
    """
    needed = {entry.start: entry for entry in (question.asked, question.target) if entry is not None}
    lines = {entry.start: None if whole else rng.choice((1, 1, 1, 2, 4)) for entry in page.entries}
    left = budget * _CHARACTERS - sum(len(entry.text(lines[start])) for start, entry in needed.items())
    kept, others = dict(needed), [entry for entry in page.entries if entry.start not in needed]
    rng.shuffle(others)
    for entry in sorted(others, key=lambda entry: not entry.is_class and rng.random() < 0.6):
        size = len(entry.text(lines[entry.start]))
        if (whole or len(entry.head) < rng.choice((60, 60, 160))) and size <= left:
            kept[entry.start] = entry
            left -= size
    order = sorted(kept)
    docs = [kept[start] for start in order]
    if mixed:
        rng.shuffle(docs)
    short = Page(page.title)
    for start, other in zip(order, docs, strict=True):
        short.add(replace(kept[start], doc=other.doc, answer=other.answer), lines[start])
    found = dict(zip(order, short.entries, strict=True))
    asked, target = (found[entry.start] if entry else None for entry in (question.asked, question.target))
    return short, replace(question, asked=asked, target=target)


def rewired(page: Page, question: Question, rng: random.Random) -> tuple[Page, Question] | None:
    """The page with another class's name where the asked entry leads to one, so that nothing can be guessed from names.

    Returns:
        The page, and the question, which is now of two places; None where the page has no other class.
    """
    asked = question.asked
    if asked is None or not question.leads_to:
        return None
    own = asked.name.partition(".")[0]
    others = [entry for entry in page.described.values() if entry.is_class and entry.name not in (own, question.leads_to)]
    if not others:
        return None
    chosen, at = rng.choice(others), asked.head.index("(")
    named = re.sub(rf"(?<![\w.]){question.leads_to}\b", chosen.name, asked.head[at:])
    longer = len(named) - len(asked.head[at:])

    def moved(entry: Entry) -> Entry:
        if entry.start == asked.start:
            relations = ((words, chosen.name if name == question.leads_to else name) for words, name in entry.relations)
            entry = replace(entry, head=asked.head[:at] + named, relations=tuple(relations))
        starts = {name: getattr(entry, name) for name in ("start", "answer_start")}
        return replace(entry, **{name: start + longer for name, start in starts.items() if start > asked.start})

    text = page.text[: asked.start + at] + named + page.text[asked.start + len(asked.head) :]
    changed = replace(question, kind="two places", asked=moved(asked), target=moved(chosen), leads_to=chosen.name)
    return Page(page.title, text, [moved(entry) for entry in page.entries]), changed


def halfway(question: Question) -> Question | None:
    """The question for the name of the class that a question of two places leads to.

    Its answer stands in the entry that both name. None for other questions.
    """
    entry, form = question.asked, _ASKED.search(question.text)
    if question.kind != "two places" or entry is None or form is None:
        return None
    named = related(entry.head, form)
    name = re.search(rf"\b{question.leads_to}\b", named[1]) if named else None
    assert named is not None, entry.head
    assert name is not None, entry.head
    target = replace(entry, answer=question.leads_to, answer_start=entry.start + named.start(1) + name.start())
    text = question.text.replace("How is the class", "What is the name of the class").replace(" described?", "?")
    return replace(question, kind="one place", text=text, target=target)


ENTRY = re.compile(r"^(?P<head>(?:class )?(?P<name>[\w.]+)\(.*)\n(?:    (?P<first>.+\n(?:    .*\n)*))?", re.MULTILINE)
_ASKED = re.compile(
    r"How is (?:the class that )?`(?P<name>[\w.]+)`(?: (?P<how>extends|returns|takes as `(?P<argument>\w+)`))? described\?$"
)


def related(head: str, form: re.Match[str]) -> re.Match[str] | None:
    """What an entry extends, returns or takes, as a question of this form asks: group 1 of the match."""
    pattern = {"extends": r"\((.*)\)$", "returns": r" -> (.*)$"}.get(form["how"], rf"\b{form['argument']}: ([^=,)]*)")
    return re.search(pattern, head)


def sentences(text: str) -> dict[str, tuple[str, str]]:
    """Read a page: the name of every entry with its head and the first sentence of its docstring."""
    found: dict[str, tuple[str, str]] = {}
    for match in ENTRY.finditer(text):
        doc = re.sub(r"^    ", "", match["first"] or "", flags=re.MULTILINE)
        found.setdefault(match["name"], (match["head"], first_sentence(doc.strip())))
    return found


def program(record: Mapping[str, Any]) -> str:
    """The answer of a program that knows the form of pages and questions: regular expressions, no Python parser."""
    entries, asked = sentences(record["context"]), _ASKED.search(record["question"])
    if asked is None or asked["name"] not in entries:
        return ""
    name = asked["name"]
    if asked["how"]:
        match = related(entries[name][0], asked)
        named = re.findall(r"\w+", match[1] if match else "")
        name = next((word for word in named if word in entries and entries[word][0].startswith("class ")), "")
    return entries[name][1] if name else ""


def words(text: str) -> set[str]:
    """The lower-case words of identifiers, split at underscores and capitals."""
    return {word.lower() for word in WORD.findall(text)}


def most_words(record: Mapping[str, Any]) -> str:
    """The first sentence of the entry with most words of the question, as a share of its own."""
    asked = words(record["question"]) - _ORDINARY
    shares = []
    for head, sentence in sentences(record["context"]).values():
        its = words(f"{head} {sentence}")
        shares.append((len(asked & its) / (1 + len(its)) if sentence else 0.0, sentence))
    return max(shares, key=lambda share: share[0], default=(0.0, ""))[1]


def any_sentence(record: Mapping[str, Any]) -> str:
    """The first sentence of a random entry, always the same for the same question."""
    found = [sentence for _, sentence in sentences(record["context"]).values() if sentence]
    return random.Random(record["id"]).choice(found) if found else ""
