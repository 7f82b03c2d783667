"""The retrieval study: no docstring is left in the code that is searched, each query has one right answer, and scores are counted right."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import LengthError
from scripts.dev.studies import retrieval
from scripts.dev.studies.corpus import Module
from scripts.dev.studies.retrieval import (
    BM25,
    CHANCE,
    PRETRAINED,
    Ranks,
    best_of,
    bm25,
    by_document,
    chunk_spans,
    line_spans,
    main,
    overlaps,
    words,
)
from scripts.dev.studies.retrieval_data import (
    code_search,
    long_texts,
    needle_documents,
    needles,
    normal,
    source_file,
    texts_of,
    training_pairs,
)
from tests.training.conftest import SOURCES, checkpoint

FILE = '''"""What this module is for."""
import os


def area(width, height):
    """Return the area of a rectangle.

    Both sides are in metres.
    """
    size = width * height
    return size


class Shape:
    """A shape with – unusual – characters."""

    @property
    def name(self):
        """Only the name that it was given first."""

    @staticmethod
    def grow(shape,
             times):  # é
        r"""Make the shape larger \\n by a factor."""; times += 1
        def inner():
            """What is inside belongs to the method."""
        return shape * times


if os.name:
    async def wait(seconds): "Wait for some time"
else:
    def wait(seconds):
        # nothing to do
        """no docstring after a comment? it is one"""
        pass
'''


def test_docstrings_are_removed_and_functions_found() -> None:
    file = source_file(Module("p", "p/a.py", FILE.replace("; times += 1", "\n        times += 1")))
    assert file is not None
    tree = ast.parse(file.text)
    assert not any(ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
    assert '"""' not in file.text
    assert "# é" in file.text
    assert [one.name for one in file.functions] == ["area", "Shape.name", "Shape.grow", "wait", "wait"]
    area, name, grow, wait, other = file.functions
    assert area.summary == "Return the area of a rectangle."
    assert area.code == "def area(width, height):\n    size = width * height\n    return size"
    assert name.code == "@property\ndef name(self):\n    ..."
    assert file.text[grow.start : grow.end].startswith("    @staticmethod\n    def grow")
    assert "def inner():\n        ...\n" in grow.code
    assert wait.code == "async def wait(seconds): ..."
    assert (wait.summary, other.summary) == ("Wait for some time", "no docstring after a comment? it is one")


def test_what_cannot_be_done_safely_is_left_out() -> None:
    assert source_file(Module("p", "p/a.py", "print 1")) is None
    assert source_file(Module("p", "p/a.py", FILE)) is None  # a statement after a docstring on its line


BODY = "    total = 0\n    for one in {0}:\n        total += one\n    return total\n"


def function(name: str, docstring: str, body: str = "") -> str:
    return f'def {name}(numbers):\n    """{docstring}"""\n{body or BODY.format(name)}'


def test_every_query_has_one_right_answer() -> None:
    modules = [
        Module("p", "p/a.py", "\n".join([
            function("first", "Add all the numbers up."), function("twice", "The same words for two."), function("short", "Too short."),
            function("copied", "Code that is there twice.", BODY.format("copy")), function("repeated", "Said in a comment as well."),
            "# Said in a  comment as well.",
        ])),
        Module("p", "p/b.py", "\n".join([function("again", "The same words for two."), function("last", "Another sum of the numbers.")])),
        Module("p", "p/c.py", function("copied", "Not the same docstring here.", BODY.format("copy"))),
        Module("p", "p/empty.py", "VALUE = 1\n"),
        Module("p", "p/tests/test_a.py", function("check", "Check all of the sums.")),
        Module("p", "p/test_b.py", function("check", "Check all of the sums.")),
    ]  # fmt: skip
    search = code_search(modules)
    assert [file.path for file in search.files] == ["p/a.py", "p/b.py", "p/c.py"]
    asked = {query.text: search.functions[query.function].name for query in search.queries}
    assert asked == {"Add all the numbers up.": "first", "Another sum of the numbers.": "last"}
    assert search.file_of == [0] * 5 + [1] * 2 + [2]
    for query in search.queries:
        assert not any(normal(query.text) in normal(file.text) for file in search.files)
        right = search.functions[query.function]
        assert sum(normal(right.code) == normal(one.code) for one in search.functions) == 1


def test_training_repeats_nothing_of_the_search() -> None:
    search = code_search([Module("p", "p/a.py", function("first", "Add all the numbers up."))])
    train = [
        Module("q", "q/a.py", "\n".join([function("first", "Other words, the same code."), function("other", "Add all  the numbers up.")])),
        Module("q", "q/b.py", "\n".join(["# before", *["x = 1"] * 300, function("third", "A function in the middle."), *["y = 2"] * 300])),
        Module("q", "q/test_c.py", function("fourth", "A function of some tests.")),
    ]
    rows = training_pairs(train, 10, avoid=texts_of(search), per_file=5)
    assert [row["anchor"] for row in rows] == ["A function in the middle."]
    assert rows[0]["positive"].startswith("def third")
    whole = training_pairs(train, 10, avoid=texts_of(search), characters=500)
    assert "def third(numbers):\n    total" in whole[0]["positive"]
    assert "return total" in whole[0]["positive"]
    assert 450 <= len(whole[0]["positive"]) <= 520
    assert "in the middle" not in whole[0]["positive"]
    assert training_pairs(train, 0 + 1, per_file=5)[0]["anchor"] in ("Other words, the same code.", "Add all the numbers up.")


def test_each_document_has_its_own_needle_once(tokenizer: PreTrainedTokenizerBase) -> None:
    modules = [Module("p", f"p/{number}.py", text) for number, text in enumerate([*SOURCES, "x = 1\n"])]
    texts = long_texts(modules, tokenizer, 1000, 3)
    hidden = needles(3)
    assert hidden == needles(3)
    for length in (256, 1000):
        documents = needle_documents(texts, tokenizer, length, hidden)
        for document, text, needle in zip(documents, texts, hidden, strict=True):
            assert length - 12 <= len(tokenizer(document)["input_ids"]) <= length
            lines = document.split("\n")
            assert lines.count(needle.line) == 1
            assert lines.index(needle.line) == round(needle.depth * (len(lines) - 1))
            assert text.startswith("\n".join(line for line in lines if line != needle.line))
            assert not any(other.line in document for other in hidden if other is not needle)
            assert not any(other.question in document for other in hidden)
    many = needles(1024)
    assert len({needle.question for needle in many}) == len({needle.line for needle in many}) == 1024
    with pytest.raises(LengthError, match="ask for fewer"):
        needles(1025)
    with pytest.raises(LengthError, match="ask for at most"):
        long_texts(modules, tokenizer, 1000, 10)
    with pytest.raises(LengthError, match="give longer texts"):
        needle_documents(["x = 1"], tokenizer, 256, hidden[:1])


def test_recall_and_reciprocal_rank_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.2, 0.2], [0.3, 0.7, 0.7]])
    ranks = Ranks.of(scores, [0, 2, 1, 2])
    assert ranks == Ranks((0, 2, 0, 0), (1, 1, 3, 2))
    assert ranks.recall(1) == [1, 0, pytest.approx(1 / 3), 0.5]
    assert ranks.recall(2) == [1, 0, pytest.approx(2 / 3), 1]
    assert ranks.recall(5) == [1, 1, 1, 1]
    assert ranks.reciprocal() == pytest.approx([1, 1 / 3, (1 + 1 / 2 + 1 / 3) / 3, 3 / 4])


def test_an_answer_has_the_score_of_its_best_unit() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5]])
    found = best_of(scores, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 2]), 3)
    assert found.tolist() == [[pytest.approx(0.9), pytest.approx(0.9), -math.inf]]
    given, kind, owner = by_document([[(0, 5)], [(0, 2), (2, 4)]], [[(0, 5)], [(0, 4)]])
    assert given == [[(0, 5), (0, 5)], [(0, 2), (2, 4), (0, 4)]]
    assert kind.tolist() == [0, 1, 0, 0, 1]
    assert owner.tolist() == [0, 0, 1, 1, 1]


def test_chunks_and_the_functions_in_them(tokenizer: PreTrainedTokenizerBase) -> None:
    search = code_search([Module("p", f"p/{number}.py", text) for number, text in enumerate(SOURCES[:2])])
    spans = [chunk_spans(tokenizer, file.text, 100) for file in search.files]
    for file, some in zip(search.files, spans, strict=True):
        assert "".join(file.text[start:end] for start, end in some) == file.text
    answers, units = overlaps(search, spans)
    every = [file.text[start:end] for file, some in zip(search.files, spans, strict=True) for start, end in some]
    functions = search.functions
    assert set(answers.tolist()) == set(range(len(functions)))
    for number in range(0, len(functions), 7):
        joined = "".join(every[unit] for unit in units[answers == number])
        assert search.files[search.file_of[number]].text[functions[number].start : functions[number].end] in joined


def test_lines_are_passages_with_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "import os\n\n    \ndef f(x):\n    return x\n"
    assert [text[start:end] for start, end in line_spans(tokenizer, text)] == ["import os", "def f(x):", "    return x"]


def test_bm25_against_its_formula() -> None:
    assert words("read_csvFile, HTTPServer 3d: Élan") == ["read", "csv", "file", "http", "server", "3", "d", "lan"]
    documents = ["tree node tree", "node path", "path path line word"]
    found = bm25(["tree path", "none"], documents, k1=1.2, b=0.5)
    usual = 3.0
    rarity = {"tree": math.log(1 + 2.5 / 1.5), "path": math.log(1 + 1.5 / 2.5)}

    def part(word: str, times: int, size: int) -> float:
        return rarity[word] * times * 2.2 / (times + 1.2 * (0.5 + 0.5 * size / usual))

    assert found[0].tolist() == pytest.approx([part("tree", 2, 3), part("path", 1, 2), part("path", 2, 4)])
    assert found[1].tolist() == [0, 0, 0]


@pytest.mark.slow
def test_the_whole_study_on_a_small_model(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers")
    model = checkpoint("mlm", tmp_path / "model", tokenizer)
    modules = {
        "train": [Module("t", f"t/{number}.py", function(f"f{number}", f"Docstring number {number} of them.")) for number in range(60)],
        "validation": [Module("v", f"v/{number}.py", function(f"v{number}", f"Held out number {number} here.")) for number in range(5)],
        "test": [Module("networkx", f"n/{number}.py", text) for number, text in enumerate(SOURCES[:3])],
    }
    small = {"CHUNK": 60, "WINDOW": 62, "SMALL": 20, "SHORT_BATCH": 4, "LONG_BATCH": 4, "FILE_TOKENS": 100, "FILE_CHARACTERS": 300,
        "FUNCTION_PAIRS": 8, "FILE_PAIRS": 4}  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(retrieval, name, value)
    monkeypatch.setattr(retrieval, "iter_modules", lambda split, packages=None: iter(modules[split]))
    asked = ["--work-dir", str(tmp_path / "work"), "--model", model, "--lengths", "64", "128", "--documents", "3", "--max-length", "128",
        "--tokens", "1000", "--further-tokens", "500", "--output", str(tmp_path / "found")]  # fmt: skip
    assert main(asked) == 0
    record = json.loads((tmp_path / "found.json").read_text())
    ways = {(row["stage"], row["way"]) for row in record["table"]}
    assert len(ways) == 3 + 3 * (5 + 3 + 3)
    chance = next(row for row in record["table"] if (row["level"], row["way"]) == ("file", CHANCE))
    assert chance["recall_at_1"]["mean"] == pytest.approx(100 / 3)
    assert chance["recall_at_5"]["mean"] == 100
    needle = next(row for row in record["table"] if (row["level"], row["way"]) == ("128", BM25))
    assert needle["recall_at_1"]["mean"] == 100
    assert len(record["late_against_alone"]) == 3 * (2 * 2 + 2 * 2 + 2)
    assert set(record["about"]["trainings"]) == {"short-1", "short-2", "long-2"}
    assert f"{PRETRAINED}: one embedding per file" in (tmp_path / "found.md").read_text()
    monkeypatch.setattr(retrieval.Study, "measure", lambda *_: pytest.fail("everything is measured"))
    (tmp_path / "found.md").unlink()
    assert main([*asked, "--measured"]) == 0
    assert (tmp_path / "found.md").exists()
