"""Every sentence with which the package refuses something, as pages of the site: read from the source, nothing is raised.

The site's build writes them to docs/messages/, which is not in git.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, cached_property
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

from scripts.dev import ROOT

PACKAGE = ROOT / "hf_longattn"
BASE = "LongAttentionError"
PARTS = {
    "BadParameter": "UsageError",
    "RowError": "DataError",
    "InputSetting": "OptionError",
    "Operation": "HubError",
    "_sentence": "HubError",
}
"""What else holds sentences, whole or in part, and the error with which they are shown; the last two are of hub_errors.py."""
ANY = "…"
"""What stands in a sentence for a name, a number or a part that is known when it is raised."""
MOST = 12
"""The most wordings of one place: parts that are chosen one by one can be combined in many ways."""
GUIDES = {
    "audit": "audit", "cli/audit": "audit", "cli/compress": "compress", "cli/convert": "convert", "cli/diagnose": "diagnose",
    "cli/export": "export", "cli/hub": "hub", "cli/probe": "diagnose", "cli/search": "search", "cli/train": "train",
    "conversion": "convert", "data": "train", "data/audio": "speech", "data/batching": "batches", "data/page_words": "pages",
    "data/pages": "pages", "data/pairs": "embed", "data/photographs": "images", "data/pictures": "images", "data/qa_features": "long_qa",
    "data/qa_inputs": "long_qa", "data/qa_markers": "long_qa", "data/qa_schemas": "long_qa", "data/transcripts": "speech",
    "data/videos": "videos", "data/words": "classify", "diagnostics": "diagnose", "evaluation": "measure", "export": "export",
    "hub": "hub", "hub_errors": "hub", "modeling/audio": "speech", "modeling/grids": "images", "modeling/multimodal": "image_text",
    "modeling/pipelines": "pages", "modeling/towers": "image_text", "positions": "positions", "recipes": "recipes",
    "search": "search", "streaming": "speech", "training": "train", "training/linearise": "linearise",
    "training/processes": "many_processes", "training/tasks/classify": "classify", "training/tasks/ctc": "speech",
    "training/tasks/distill": "adapt", "training/tasks/embed": "embed", "training/tasks/linearise": "linearise",
    "training/tasks/multitask": "multitask", "training/tasks/qa": "long_qa",
}  # fmt: skip
"""Rooms and files of the package -> the page of docs/how-to about what is done there."""


class Message(NamedTuple):
    """A sentence of an error class, and the file that raises it, relative to the package, without its suffix."""

    error: str
    sentence: str
    file: str

    @property
    def guide(self) -> str | None:
        """The page of docs/how-to about it."""
        parts = self.file.split("/")
        return next((GUIDES[room] for n in range(len(parts), 0, -1) if (room := "/".join(parts[:n])) in GUIDES), None)


class Module:
    """One file of the package, in which names of sentences and functions that return them are looked up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text(encoding="utf-8"))

    @cached_property
    def constants(self) -> dict[str, list[ast.expr]]:
        return assignments(self.tree.body)

    @cached_property
    def functions(self) -> dict[str, ast.FunctionDef]:
        return {node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)}

    @cached_property
    def imports(self) -> dict[str, tuple[Path, str]]:
        """Names that come from another file of the package -> that file and their name in it."""
        found: dict[str, tuple[Path, str]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                place = self.path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
                found |= {name.asname or name.name: (file, name.name) for name in node.names if file.exists()}
        return found

    def variables(self, function: ast.FunctionDef) -> dict[str, list[ast.expr]]:
        """The variables of a function -> what is assigned to them."""
        return assignments(ast.walk(function))

    def raised(self, errors: set[str]) -> Iterator[tuple[str, str]]:
        """Each error class of this file with a sentence."""
        inside = {id(node): function for function in self.functions.values() for node in ast.walk(function)}
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.Call) or (name := called(node)) not in errors:
                continue
            function = inside.get(id(node))
            local = self.variables(function) if function else {}
            if name == "_sentence":
                if self.path.stem != "hub_errors":
                    continue
                yield from ((name, text) for text in self.returned(name, 0))
            elif name == "Operation":
                yield from ((name, re.sub(r"\{\w*\}", ANY, text)) for keyword in node.keywords for text in self.texts(keyword.value, local))
            elif node.args:
                yield from ((name, text) for text in self.texts(node.args[0], local))

    def texts(self, node: ast.expr, local: dict[str, list[ast.expr]], depth: int = 0) -> list[str]:
        """What an expression can say; ``…`` for what is known later."""
        match node:
            case ast.Constant(value=str(text)):
                found = [text]
            case ast.JoinedStr(values=parts):
                found = self.joined(parts, local, depth)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                found = self.joined([left, right], local, depth)
            case ast.FormattedValue(value=value):
                found = self.texts(value, local, depth)
            case ast.IfExp(body=body, orelse=other):
                found = [*self.texts(body, local, depth), *self.texts(other, local, depth)]
            case ast.Name(id=name):
                found = self.named(name, local, depth)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="format")):
                found = [re.sub(r"\{\w*\}", ANY, text) for text in self.named(name, local, depth)]
            case ast.Call(func=ast.Name(id="nearest")):  # " Did you mean …?", or nothing
                found = [""]
            case ast.Call(func=ast.Name(id=name)):
                found = self.returned(name, depth)
            case _:
                found = [ANY]
        return list(dict.fromkeys(found))[:MOST]

    def joined(self, parts: list[ast.expr], local: dict[str, list[ast.expr]], depth: int) -> list[str]:
        return ["".join(pieces) for pieces in islice(product(*(self.texts(part, local, depth) for part in parts)), MOST)]

    def named(self, name: str, local: dict[str, list[ast.expr]], depth: int) -> list[str]:
        """What a variable or a constant can say."""
        if depth > 3:
            return [ANY]
        if values := local.get(name, self.constants.get(name)):
            return [text for value in values for text in self.texts(value, local, depth + 1)]
        if name in self.imports and self.imports[name][0] in MODULES:
            file, there = self.imports[name]
            return MODULES[file].named(there, {}, depth + 1)
        return [ANY]

    def returned(self, name: str, depth: int) -> list[str]:
        """What a function that writes sentences can return."""
        if depth > 3:
            return [ANY]
        if function := self.functions.get(name):
            local = self.variables(function)
            values = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]
            return [text for value in values for text in self.texts(value, local, depth + 1)] or [ANY]
        if name in self.imports and self.imports[name][0] in MODULES:
            file, there = self.imports[name]
            return MODULES[file].returned(there, depth + 1)
        return [ANY]


MODULES: dict[Path, Module] = {}


def assignments(nodes: Iterator[ast.AST] | list[ast.stmt]) -> dict[str, list[ast.expr]]:
    """Variables that are set by plain assignments -> their values."""
    found = defaultdict(list)
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id].append(node.value)
    return dict(found)


def called(node: ast.Call) -> str:
    """The last part of the name of what is called."""
    return node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""


def error_classes() -> dict[str, str]:
    """The package's errors -> the first line of their docstrings, the base class first."""
    classes = [node for module in MODULES.values() for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
    found = {node.name: node for node in classes if node.name == BASE}
    while more := {
        node.name: node for node in classes if node.name not in found and any(getattr(base, "id", "") in found for base in node.bases)
    }:
        found |= more
    return {name: (ast.get_docstring(node) or "").split("\n")[0] for name, node in found.items()}


@cache
def messages() -> list[Message]:
    """Every sentence of the package, by error class and file; those that are another library's words alone are left out."""
    MODULES.update((path, Module(path)) for path in sorted(PACKAGE.rglob("*.py")) if path not in MODULES)
    names = {*error_classes(), *PARTS}
    found = {
        Message(PARTS.get(error, error), tidy(text), path.relative_to(PACKAGE).with_suffix("").as_posix())
        for path, module in MODULES.items()
        for error, text in module.raised(names)
    }
    return sorted(message for message in found if len(re.findall(r"[A-Za-z]{2,}", message.sentence)) > 1)


def tidy(text: str) -> str:
    """A sentence on one line, in which two unknown parts beside each other are one."""
    return re.sub(rf"{ANY}(\s*{ANY})+", ANY, " ".join(text.replace("``", "`").split()))


def words_of(name: str) -> str:
    """A class's name in lower case, with underscores between its words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


EXPLAINED = re.compile(r"^### (.+)$", re.M)


def explanations() -> dict[str, str]:
    """What troubleshooting quotes of messages, with ``…`` for the rest -> the heading under which it does."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return {quote: heading for heading in EXPLAINED.findall(text) for quote in re.findall(r"`([^`]+)`", heading)}


def holds(sentence: str, quote: str) -> bool:
    """Whether a sentence of :func:`messages` is what a quote with gaps stands for."""
    pieces = [piece.strip() for piece in quote.split(ANY)]
    return re.search(".*".join(map(re.escape, pieces)), sentence) is not None


def slug(heading: str) -> str:
    """The anchor that MyST gives a heading, as GitHub does."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def page_of(error: str) -> str:
    """The file of an error class."""
    return f"{words_of(error).removesuffix('_error')}.md"


def anchor(sentence: str, taken: set[str]) -> str:
    """The address of a sentence on its page: its first words, and a number where another one begins with the same."""
    words = re.findall(r"[a-z0-9]+", sentence.lower())[:9]
    name = "-".join(words)
    unique = next(text for n in range(1, 1000) if (text := name if n == 1 else f"{name}-{n}") not in taken)
    taken.add(unique)
    return unique


def quoted(sentence: str) -> str:
    """A sentence as code, whatever it holds."""
    fence = "``" if "`" in sentence else "`"
    return f"{fence} {sentence} {fence}" if len(fence) > 1 else f"`{sentence}`"


def pages() -> dict[str, str]:
    """File name -> text of each page, one for an error class, and ``index.md``."""
    found = messages()
    about = error_classes()
    by_error: dict[str, list[Message]] = defaultdict(list)
    for message in found:
        by_error[message.error].append(message)
    written = {page_of(error): _page(error, about[error], by_error[error]) for error in about if error in by_error}
    rows = [f"| [`{error}`]({page_of(error)}) | {about[error]} | {len(by_error[error])} |" for error in about if error in by_error]
    names = "\n".join(f"{error} <{page_of(error).removesuffix('.md')}>" for error in about if error in by_error)
    intro = (
        f"The {len(found):,} sentences with which the package refuses something, by the class of the error. `{ANY}` stands for what is "
        "yours: a name, a number, a path. To find a message, search this site for a few of its other words. Each says what to change; the "
        "guide of its section shows how. [Troubleshooting](../troubleshooting.md) explains the common ones."
    )
    table = "\n".join(["| error | raised for | messages |", "|---|---|---:|", *rows])
    written["index.md"] = f"# Every message\n\n{intro}\n\n{table}\n\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    return written


def _page(error: str, about: str, found: list[Message]) -> str:
    taken: set[str] = set()
    explained = explanations()
    lines = [f"# {error}", about]
    for file in dict.fromkeys(message.file for message in found):
        here = [message for message in found if message.file == file]
        lines.append(f"## `{file}.py`")
        if here[0].guide:
            lines.append(f"[Guide](../how-to/{here[0].guide}.md)")
        for message in here:
            why = next((heading for quote, heading in explained.items() if holds(message.sentence, quote)), None)
            more = f" · [explained](../troubleshooting.md#{slug(why)})" if why else ""
            lines.append(f"({words_of(error)}-{anchor(message.sentence, taken)})=\n{quoted(message.sentence)}{more}")
    return "\n\n".join(lines) + "\n"


def write(folder: Path) -> None:
    """Write the pages that changed, and remove those of errors that are gone."""
    folder.mkdir(exist_ok=True)
    texts = pages()
    for path in folder.glob("*.md"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
