"""Labels of whole files, and excerpts whose questions keep their answers when names change."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from scripts.dev.studies.code_labels import Code, Labelled, Names, label_files
from scripts.dev.studies.corpus import Module
from scripts.dev.studies.qa_stream import distinct

ONE = '''
from shapes.flat import (
    Square, Circle)


class Tile(Square):
    """A tile."""

    def paint(self, colour, edge, *more):
        return colour

    def draw(self, where):
        return self.paint(where, edge=1)


def far(x, y, z=1):
    return x


def near(nodes):
    first = far(nodes[0], max(nodes), 3)
    return first
'''


@pytest.fixture(scope="module")
def files(repository: Path) -> list[Labelled]:
    texts = [path.read_text() for path in sorted((repository / "scripts" / "dev" / "studies").glob("*.py"))]
    return label_files(Module("a", f"{number}.py", text) for number, text in enumerate([ONE, *texts]))


def test_labels() -> None:
    file = Labelled.of(ONE)
    assert file is not None
    word = lambda at: re.match(r"\w+", ONE[at:])[0]  # type: ignore[index]  # noqa: E731
    assert [(f.name, [name for _, name in f.parameters]) for f in file.functions] == [
        ("Tile.paint", ["colour", "edge", "more"]),
        ("Tile.draw", ["where"]),
        ("far", ["x", "y", "z"]),
        ("near", ["nodes"]),
    ]
    assert all(word(at) == name for f in file.functions for at, name in f.parameters)
    calls = {word(call.at): call for call in file.calls}
    assert [(ONE[a:b], place) for a, b, place in calls["far"].arguments] == [("nodes[0]", 0), ("max(nodes)", 1), ("3", 2)]
    assert file.functions[calls["far"].target].name == "far"
    assert file.functions[calls["far"].inside].name == "near"
    assert [(ONE[a:b], place) for a, b, place in calls["paint"].arguments] == [("where", 0), ("1", -1)]
    assert file.functions[calls["paint"].target].name == "Tile.paint"
    assert calls["max"].target == -1
    assert [(one.module, [word(at) for at, _ in one.names]) for one in file.imports] == [("shapes.flat", ["Square", "Circle"])]
    assert [(one.name, one.bases[0][1]) for one in file.classes] == [("Tile", "Square")]


def test_a_cache_gives_the_same_labels(files: list[Labelled], tmp_path: Path) -> None:
    written = label_files([Module("a", "a.py", ONE), Module("a", "b.py", "def f(")], tmp_path / "labels.jsonl")
    assert written == files[:1] == label_files([], tmp_path / "labels.jsonl")


@pytest.mark.parametrize("base", [0.0, 1.0])
@pytest.mark.parametrize("renamed", [0.0, 1.0])
def test_excerpts_keep_their_answers(files: list[Labelled], base: float, renamed: float) -> None:
    source = Code(files, Names(files), base=base, renamed=renamed)
    for seed in range(40):
        records = next(source.documents(random.Random(seed)))
        context = records[0]["context"]
        assert len(distinct(records)) == len(records)
        for record in records:
            (text,), (start,) = record["answers"]["text"], record["answers"]["answer_start"]
            assert record["context"] == context
            assert text
            assert context.startswith(text, start)
            quoted = record["question"].split("`")[1::2]
            first, second, third, last = record["trail"]
            assert last == start
            if base:
                assert context.startswith(quoted[0], first)
                assert context[second:].split(")")[0] == context[third:].split("\n")[0].split(",")[0].split(")")[0].split(" ")[-1]
            else:
                name = context[second:].split("(")[0]
                assert context.startswith(quoted[1], first)
                assert context[third:].startswith(f"{name}(")
        places = dict(records[0]["places"])
        pairs = records[0]["guides"]
        assert all(0 <= one < len(context) and other < len(context) for group in pairs.values() for one, other in group)
        for kind, first_of, stop, target in records[0]["regions"]:
            assert kind in ("callee", "inside", "owner", "previous")
            assert 0 <= target <= first_of < stop <= len(context)
        assert all(places[record["trail"][0]] == places[record["trail"][3]] for record in records if not base)
