"""Claims and queries made from reference pages, windows of them, and the statistics of their tables."""

from __future__ import annotations

import ast
import random
from collections import Counter

import pytest

from scripts.dev.studies.joint_claims import Answer, best_limit, claim, claims
from scripts.dev.studies.joint_claims import summary as claims_summary
from scripts.dev.studies.joint_ranking import Rank, query_of
from scripts.dev.studies.joint_ranking import summary as ranking_summary
from scripts.dev.studies.joint_reading import exchanged, interval, tokens_of, windows_of
from scripts.dev.studies.reference_pages import FAR, Page, entries_of, program, questions_of
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


def test_a_claim_is_true_exactly_if_the_program_finds_its_description(page: Page) -> None:
    labels = Counter()
    for seed in range(20):
        for question in questions_of(page):
            if question.kind == "two places":
                made = claim(page, question, random.Random(seed))
                assert made is not None
                assert (program({**made, "context": made["text"]}) == made["said"]) == (made["label"] == "true")
                assert made["claim"].startswith("The class that `")
                assert made["claim"].endswith(f" is described as: {made['said']}")
                labels[made["label"]] += 1
    assert min(labels.values()) > 10
    (alone,) = (Page("x"),)
    alone.add(next(iter(page.entries)))
    assert claims([alone], {"one place": 5}, far=0) == []


def test_a_query_is_two_far_descriptions_that_the_page_no_longer_has(page: Page) -> None:
    assert query_of(page, random.Random(0)) is None  # too near
    long = Page("library.books")
    for number, entry in enumerate(entries_of(ast.parse(SOURCE))):
        long.add(entry)
        long.text += "\nA line that says nothing." * 200 * (number == 0)
    query = query_of(long, random.Random(0))
    assert query is not None
    first, second = query.places
    assert second - first > FAR * 3
    removed = [entry.answer for entry in long.entries if entry.answer and entry.answer not in query.page]
    assert query.text == " ".join(removed)
    for place, answer in zip(query.places, removed, strict=True):
        name = next(entry.head for entry in long.entries if entry.answer == answer)
        assert query.page[:place].endswith(f"{name}\n    ")


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


def test_the_limit_is_where_most_claims_are_judged_rightly() -> None:
    limit = best_limit([(-3.0, False), (-2.5, True), (-2.0, False), (-1.0, False), (0.5, True), (2.0, True)])
    assert -1.0 < limit < 0.5


def test_tables_have_means_over_seeds_and_differences_question_by_question() -> None:
    rights = {"mean": [True, False, False, False], "long": [True, True, True, False], "program": [True, True]}
    answers = [
        Answer(name, number // 2 if len(its) > 2 else None, "two places", f"page {number % 2}", f"claim {number % 2}", 1.0, right, 0.5)
        for name, its in rights.items()
        for number, right in enumerate(its)
    ]
    table = claims_summary(answers)
    assert {name: row["two places"][0] for name, row in table.items()} == {"mean": 25.0, "long": 75.0, "program": 100.0}
    assert table["long"]["two places, more than the mean of windows"][0] == 50.0
    ranks = [Rank(name, 0, "page", value, value == 1, 2.0) for name, value in (("bm25", 0.5), ("best", 0.25), ("two", 0.5), ("long", 1.0))]
    ranking = ranking_summary(ranks)
    assert ranking["long"]["mrr"] == (100.0, 100.0, 100.0)
    assert ranking["long"]["more than the best chunk"][0] == 75.0
    assert ranking["best"]["first"][0] == 0.0
    assert ranking["two"]["seconds"] == 2.0


def test_an_interval_is_wider_where_pages_differ_than_where_questions_of_a_page_do() -> None:
    between = interval({f"page {page}": [float(page % 2)] * 4 for page in range(20)})
    within = interval({f"page {page}": [0.0, 1.0, 0.0, 1.0] for page in range(20)})
    assert between[0] == within[0] == 50.0
    assert between[2] - between[1] > 20
    assert within[2] - within[1] == 0
