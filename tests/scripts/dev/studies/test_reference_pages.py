"""Pages and questions: answers stand where records say, a program finds all of them, and what is uncertain is not asked."""

from __future__ import annotations

import ast
import random
from typing import Any

import pytest

from hf_longattn.errors import LongAttentionError
from scripts.dev.studies.reference_pages import (
    Page,
    entries_of,
    excerpt,
    halfway,
    pages_of,
    program,
    questions_of,
    rewired,
)

SOURCE = '''
class Shelf(list):
    """Holds the books of one reader. It may be empty."""

class Novel(Book):
    """Anything that was made up by somebody."""

    def lend(self, reader: "Shelf | None", days: int = 3) -> Shelf:
        """Give it away for some days.

        Returns:
            where it went.
        """

class Poem(Novel):
    """Short lines that rhyme"""

def find(shelf: Shelf, keep: list[Novel]) -> Novel:
    """Look for a novel of that name."""

def undocumented(shelf: Shelf): ...

class Poet(Person, Novel):
    """Somebody who writes in verse."""
'''


@pytest.fixture
def page() -> Page:
    made = Page("library.books")
    for entry in entries_of(ast.parse(SOURCE)):
        made.add(entry)
    return made


def test_page_lists_entries_with_docstrings_and_their_places(page: Page) -> None:
    assert [entry.name for entry in page.entries] == ["Shelf", "Novel", "Novel.lend", "Poem", "find", "Poet"]
    for entry in page.entries:
        assert page.text[entry.start :].startswith(entry.head + "\n")
        assert page.text[entry.answer_start :].startswith(entry.answer)
    assert page.entries[0].answer == "Holds the books of one reader."


def test_questions_of_a_page_are_of_one_place_two_places_or_none(page: Page) -> None:
    found = {
        question.text: (question.kind, question.target.name if question.target else None)
        for question in questions_of(page, ["Ode", "find"])
    }
    assert found == {
        **{f"How is `{entry.name}` described?": ("one place", entry.name) for entry in page.entries},
        "How is the class that `Shelf` extends described?": ("none", None),
        "How is the class that `Novel` extends described?": ("none", None),
        "How is the class that `Poem` extends described?": ("two places", "Novel"),
        "How is the class that `Novel.lend` takes as `reader` described?": ("two places", "Shelf"),
        "How is the class that `Novel.lend` returns described?": ("two places", "Shelf"),
        "How is the class that `find` takes as `shelf` described?": ("two places", "Shelf"),
        "How is the class that `find` returns described?": ("two places", "Novel"),
        "How is `Ode` described?": ("none", None),
    }  # a built-in class is not on the page either; two bases, a list of novels and a name of the page are not asked about


def record(page: Page, question: Any) -> dict[str, Any]:
    answers = [question.target.answer] if question.target else []
    return {"id": question.text, "context": page.text, "question": question.text, "answers": answers}


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_program_answers_every_question_of_pages_and_excerpts(page: Page, mixed: bool, renamed: bool) -> None:
    for number, question in enumerate(questions_of(page, ["Ode"])):
        rng = random.Random(number)
        found = [(page, question), excerpt(page, question, 60, rng, mixed=mixed)]
        for text, one in filter(None, [rewired(*one, rng) for one in found] if renamed else found):
            row = record(text, one)
            assert program(row) == (row["answers"] or [""])[0], (one.text, text.text)
            assert all(text.text[entry.start :].startswith(entry.head) for entry in text.entries)
            assert all(text.text[entry.answer_start :].startswith(entry.answer) for entry in text.entries if entry.answer)
            assert one.asked is None or one.asked in text.entries
            assert one.target is None or one.target in text.entries


def test_rewired_entry_names_any_other_class_of_the_page(page: Page) -> None:
    by_text = {question.text: question for question in questions_of(page)}
    for text, others in (("`Poem` extends", {"Shelf", "Poet"}), ("`Novel` extends", {"Shelf", "Poem", "Poet"})):
        (question,) = (question for found, question in by_text.items() if text in found)
        made = [rewired(page, question, random.Random(seed)) for seed in range(30)]
        assert {one[1].target.name for one in made if one is not None} == others  # type: ignore[union-attr]
        assert all(one is not None and one[1] in list(questions_of(one[0])) for one in made)
    assert rewired(page, by_text["How is `Poet` described?"], random.Random(0)) is None


def test_halfway_question_asks_for_the_name_of_a_class(page: Page) -> None:
    found = {}
    for question in questions_of(page):
        half = halfway(question)
        assert (half is None) == (question.kind != "two places")
        if half is not None:
            assert half.target is not None
            (answer,), (start,) = half.record(page)["answers"].values()
            found[half.text] = page.text[start : start + len(answer)], page.text[:start].splitlines()[-1]
    lend, find = "Novel.lend(self, reader: ", "find(shelf: "
    assert found == {
        "What is the name of the class that `Poem` extends?": ("Novel", "class Poem("),
        "What is the name of the class that `Novel.lend` takes as `reader`?": ("Shelf", f"{lend}'"),
        "What is the name of the class that `Novel.lend` returns?": ("Shelf", f"{lend}'Shelf | None', days: int=3) -> "),
        "What is the name of the class that `find` takes as `shelf`?": ("Shelf", find),
        "What is the name of the class that `find` returns?": ("Novel", f"{find}Shelf, keep: list[Novel]) -> "),
    }


def test_pages_of_an_installed_package_are_always_the_same() -> None:
    pages = list(pages_of("packaging"))
    assert len(pages) > 3
    assert all(page.text.startswith("packaging") and page.entries for page in pages)
    assert [page.text for page in pages] == [page.text for page in pages_of("packaging")]
    with pytest.raises(LongAttentionError, match="'no_such_package' is not installed here; make install installs it"):
        next(pages_of("no_such_package"))
