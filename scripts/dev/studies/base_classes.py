"""The questions of `make demo`: which module does a class's base come from, in source files of installed packages.

"Which module does the base class of `Graph` come from?" The class names its base, and an import far above names the module: two places that
no window of 512 tokens has together. Files are those of packages that no training of the committed model ever saw.
"""

from __future__ import annotations

import ast
import bisect
import random
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from hf_longattn.evaluation.summaries import BUCKETS
from scripts.dev.studies.reference_pages import words

PACKAGES = {"train": ("docutils", "huggingface_hub", "numpy"), "test": ("networkx", "pandas", "sphinx")}
LENGTHS, FAR = (1000, 8000), 512
"""Fewest and most tokens of a file, and fewest between a class and the module."""
CHARACTERS = (2_000, 50_000)
"""Of files that may have so many tokens."""
PER_FILE = 4
"""Questions about one file, at most."""


class Question(NamedTuple):
    """A class, the module that its base comes from, and where both stand: characters of the file."""

    name: str
    module: str
    place: int
    answer: int


def questions_of(text: str) -> Iterator[Question]:
    """Yield a question for every class whose single base ``from module import`` alone brings, as Python's parser says."""
    if re.search(r"^class \w+\(\w+\):", text, re.MULTILINE) is None:
        return  # before parsing, which takes longer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = [0, *(match.end() for match in re.finditer("\n", text))]
    imports = {alias.asname or alias.name: node for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    bound = Counter(name for node in ast.walk(tree) for name in bound_names(node))
    for node in tree.body:
        base = node.bases[0] if isinstance(node, ast.ClassDef) and len(node.bases) == 1 else None
        if not isinstance(node, ast.ClassDef) or not isinstance(base, ast.Name) or base.id not in imports:
            continue
        statement = imports[base.id]
        module, place = "." * statement.level + (statement.module or ""), lines[node.lineno - 1]
        named = re.compile(r"from[ \t]+([\w.]+)[ \t]+import\b").match(text, lines[statement.lineno - 1])
        certain = bound[base.id] == bound[node.name] == 1 and named is not None and named[1] == module and module.strip(".")
        if named is not None and certain and node.name not in module and not words(node.name) & words(module):
            yield Question(node.name, module, place, named.start(1))


def bound_names(node: ast.AST) -> list[str]:
    """The names that a statement or an argument defines."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return [node.id]
    return [node.arg] if isinstance(node, ast.arg) else []


def records(split: str, tokenizer: PreTrainedTokenizerBase, per_length: int) -> list[dict[str, Any]]:
    """Questions about whole files, SQuAD-shaped, the same for the same packages.

    Args:
        split: of :data:`PACKAGES`.
        tokenizer: measures the files.
        per_length: most questions of each of the package's classes of lengths.
    """
    site, rng = Path(sysconfig.get_paths()["purelib"]), random.Random(0)
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(file for package in PACKAGES[split] for file in (site / package).rglob("*.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        if not CHARACTERS[0] <= len(text) <= CHARACTERS[1] or not (asked := list(questions_of(text))):
            continue
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = [start for start, _ in encoded["offset_mapping"]]
        if not LENGTHS[0] <= len(starts) <= LENGTHS[1]:
            continue
        far = [one for one in asked if bisect.bisect_left(starts, one.place) - bisect.bisect_left(starts, one.answer) >= FAR]
        title = file.relative_to(site).as_posix()
        for one in rng.sample(far, min(PER_FILE, len(far))):
            found[bisect.bisect_left(BUCKETS, len(starts))].append({
                "id": f"{title}:{one.name}", "title": title, "context": text,
                "question": f"Which module does the base class of `{one.name}` come from?",
                "answers": {"text": [one.module], "answer_start": [one.answer]},
            })  # fmt: skip
    return [record for _, those in sorted(found.items()) for record in rng.sample(those, min(per_length, len(those)))]
