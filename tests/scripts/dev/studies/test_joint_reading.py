"""Questions whose names are exchanged, excerpts and windows of pages, and intervals."""

from __future__ import annotations

import ast

import pytest

from scripts.dev.studies.joint_reading import exchanged, interval, windows_of
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


def test_names_of_a_page_are_exchanged_only_with_a_class_far_away(page: Page) -> None:
    tokenizer = tokenizer_of("bert")
    assert exchanged([page], tokenizer, 5) == []  # too near
    long = Page("library.books")
    for entry in entries_of(ast.parse(SOURCE)):
        long.add(entry)
        long.text += "\nA line that says nothing." * 60
    (record,) = exchanged([long], tokenizer, 5)
    assert record["places"] == "names exchanged"
    assert record["context"] != long.text
    assert record["distance"] >= FAR
    assert [program(record)] == record["answers"]["text"]


def test_windows_of_a_page_cover_it_and_fit_behind_the_question() -> None:
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


def test_interval_is_wider_if_pages_differ_than_if_questions_of_a_page_do() -> None:
    between = interval({f"page {page}": [float(page % 2)] * 4 for page in range(20)})
    within = interval({f"page {page}": [0.0, 1.0, 0.0, 1.0] for page in range(20)})
    assert between[0] == within[0] == 50.0
    assert between[2] - between[1] > 20
    assert within[2] - within[1] == 0
