"""Questions whose names are exchanged, excerpts and windows of pages, and intervals."""

from __future__ import annotations

import ast
import random

import pytest

from scripts.dev.studies.joint_reading import exchanged, interval, tokens_of, windows_of
from scripts.dev.studies.reference_pages import FAR, Page, entries_of, program
from tests.trained import tokenizer_of

SOURCE = '''
class Shelf(list):
    """Holds all the books that one reader owns. It may be empty."""

class Novel(Shelf):
    """Anything that was made up by somebody."""

    def lend(self, reader: "Reader", days: int = 3) -> Shelf:
        """Give it away for some days."""

class Poem(Novel):
    """Short lines that sometimes rhyme at their ends."""
'''


@pytest.fixture
def page() -> Page:
    made = Page("library.books")
    for entry in entries_of(ast.parse(SOURCE)):
        made.add(entry)
    return made


def test_names_are_exchanged_where_the_page_has_another_class_far_away(page: Page) -> None:
    tokenizer = tokenizer_of("bert")
    assert exchanged([page], tokenizer, 5) == []  # too near
    long = Page("library.books")
    for entry in entries_of(ast.parse(SOURCE)):
        long.add(entry)
        long.text += "\nA line that says nothing." * 60
    (record,) = exchanged([long], tokenizer, 5)
    assert record["kind"] == "names exchanged"
    assert record["context"] != long.text
    assert record["distance"] >= FAR
    assert [program(record)] == record["answers"]["text"]


def test_long_excerpts_are_rare() -> None:
    rng = random.Random(0)
    sizes = sorted(tokens_of((100, 3600), rng) for _ in range(1000))
    assert sizes[0] >= 100
    assert sizes[500] < 400
    assert 2000 < sizes[-1] <= 3600
    assert {tokens_of((100, 105), rng) for _ in range(100)} == set(range(100, 106))


def test_windows_cover_a_text_and_fit_behind_what_is_asked() -> None:
    tokenizer = tokenizer_of("bert")
    text = " ".join(f"word{number}." for number in range(900))
    parts = windows_of("which word?", text, tokenizer)
    assert len(parts) > 2
    assert parts[0][0] == 0
    assert text.endswith(parts[-1][1])
    for start, part in parts:
        assert text[start:].startswith(part)
        assert len(tokenizer("which word?", part)["input_ids"]) <= 512
    ends = [start + len(part) for start, part in parts]
    assert all(start < end for (start, _), end in zip(parts[1:], ends, strict=False))


def test_an_interval_is_wider_where_pages_differ_than_where_questions_of_a_page_do() -> None:
    between = interval({f"page {page}": [float(page % 2)] * 4 for page in range(20)})
    within = interval({f"page {page}": [0.0, 1.0, 0.0, 1.0] for page in range(20)})
    assert between[0] == within[0] == 50.0
    assert between[2] - between[1] > 20
    assert within[2] - within[1] == 0
