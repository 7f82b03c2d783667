"""Labels and queries made from reference pages, windows of them, and the statistics of their tables."""

from __future__ import annotations

import ast
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scripts.dev.studies.joint_labels import ANSWERED, KINDS, WINDOWS, Answer, areas, labelled
from scripts.dev.studies.joint_labels import summary as labels_summary
from scripts.dev.studies.joint_ranking import KINDS as RANKED
from scripts.dev.studies.joint_ranking import VERSIONS, Rank, in_windows, pairs, questions_with_candidates, rank, versions
from scripts.dev.studies.joint_ranking import summary as ranking_summary
from scripts.dev.studies.joint_reading import asked_of, exchanged, interval, tokens_of, windows_of
from scripts.dev.studies.reference_pages import FAR, Entry, Page, entries_of, program, questions_of, share_of_words, without_entry
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


def test_a_page_is_labelled_as_the_program_reads_it_and_loses_one_entry_or_nothing(page: Page) -> None:
    records = [question.record(page) for question in questions_of(page, ["Magazine"])]
    labels = Counter[tuple[str, str]]()
    for seed in range(20):
        found = list(labelled(records, seed))
        assert [one["id"] for one in found] == [one["id"] for one in records if one["answers"]["text"]]
        for one, record in zip(found, (one for one in records if one["answers"]["text"]), strict=True):
            assert (program({**one, "context": one["text"]}) != "") == (one["label"] == ANSWERED)
            lost = {entry.text() for entry in page.entries if entry.text() not in one["text"]}
            target = {entry.text() for entry in page.entries if entry.answer == record["answers"]["text"][0]}
            assert lost == (set() if one["label"] == ANSWERED else target)
            assert len(one["text"]) == len(page.text) - len("".join(lost))
            labels[one["kind"], one["label"]] += 1
    assert len(labels) == 4
    assert min(labels.values()) > 10


def record_of(page: Page, kind: str = "two places") -> dict[str, Any]:
    question = next(one for one in questions_of(page) if one.kind == kind)
    return question.record(page)


def test_one_version_of_a_page_answers_and_each_lacks_another_entry(page: Page) -> None:
    record = record_of(page)
    assert versions(record, 4, random.Random(0)) == []  # of four entries, two are needed
    right, *wrong = versions(record, 2, random.Random(0))
    assert program({**record, "context": right}) == record["answers"]["text"][0]
    assert [program({**record, "context": text}) for text in wrong] == [""]
    printed = [entry.text() for entry in page.entries]
    lost = [{text for text in printed if text not in version} for version in (right, *wrong)]
    assert list(map(len, lost)) == [1, 2]
    assert not lost[0] & lost[1]
    for version, its in zip((right, *wrong), lost, strict=True):
        assert len(version) == len(page.text) - len("".join(its))


def test_negatives_are_the_page_without_its_answer_and_another_page_or_windows_of_them(page: Page) -> None:
    tokenizer = tokenizer_of("bert")
    long, other = Page("library.books"), Page("shop")
    for entry in entries_of(ast.parse(SOURCE)):
        long.add(entry)
        long.text += "    A line that says nothing.\n" * 150
    other.add(Entry("Till", "class Till()", "Takes money all day.", "Takes money all day."))
    records = [question.record(of) for of in (long, other) for question in questions_of(of, ["Magazine"])]
    answered = [record for record in asked_of(records) if record["title"] == long.title]
    found = [pair for pair in pairs(records) if pair["positive"] == long.text]
    parts = list(in_windows(records, tokenizer))[: 2 * len(answered)]
    for number, record in enumerate(answered):
        (answer,) = record["answers"]["text"]
        without, elsewhere = found[2 * number : 2 * number + 2]
        assert {without["anchor"], elsewhere["anchor"]} == {record["question"]}
        assert answer not in without["negative"]
        assert len(without["negative"]) > len(long.text) / 2
        assert elsewhere["negative"] == other.text
        for part, pair in zip(parts[2 * number : 2 * number + 2], (without, elsewhere), strict=True):
            assert part["anchor"] == record["question"]
            assert answer in part["positive"]
            assert part["positive"] in long.text
            assert part["negative"] in pair["negative"]


def test_no_other_page_among_the_candidates_answers() -> None:
    def made(title: str) -> Page:
        page = Page(title)
        for entry in entries_of(ast.parse(SOURCE + "".join(f'''
class Series{number}(Novel):
    """Goes on with volume {number} of {title} after the first ones."""
''' for number in range(6)))):  # fmt: skip
            page.add(entry)
        return page

    records = [record_of(made(title)) for title in ("library", "shop")]
    rows = questions_with_candidates(records, 5)
    assert [row["title"] for row in rows] == ["library", "shop"]
    for row in rows:
        answers = [program({"question": row["query"], "context": page}) for page in row["pages"]]
        assert [number for number, answer in enumerate(answers) if answer] == [row["right"]]
        assert len(row["pages"]) == 1 + 2 * (VERSIONS - 1)  # those of the other page that answer as well are left out


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


def test_words_of_the_question_are_counted_in_the_entry_that_has_most_of_them(page: Page) -> None:
    record = {"question": "How is the class that `Novel.lend` takes as `reader` described?", "context": page.text}
    fewer = {**record, "context": without_entry(page.text, page.text.index("Give it away"))}
    assert share_of_words(record)[0] > share_of_words(fewer)[0] > 0
    assert share_of_words({**record, "context": "library.books\n"}) == (0, "")


def test_areas_under_the_curve_are_those_of_scikit_learn_and_drawn_by_folders() -> None:
    rng = np.random.default_rng(0)
    folders = [f"folder {number % 7}" for number in range(40)]
    labels = rng.integers(2, size=40).astype(bool)
    sure = {seed: rng.integers(6, size=40) + 2 * labels for seed in (0, 1)}  # with ties
    made = [
        Answer(system, seed, kind, folder, float(value if system == "long" else -value), bool(label), 0.5)
        for kind in KINDS
        for system in ("long", *WINDOWS)
        for seed, values in sure.items()
        for folder, label, value in zip(folders, labels, values, strict=True)
    ]
    table = labels_summary(made)
    expected = 100 * np.mean([roc_auc_score(labels, values) for values in sure.values()])
    for kind in KINDS:
        middle, low, high = table["long"][kind]
        assert middle == pytest.approx(expected, abs=0.05)
        assert low < middle < high < low + 60
        assert table["mean"][kind][0] == pytest.approx(100 - expected, abs=0.05)
        assert table["long"][f"{kind}, more than mean"][0] == pytest.approx(2 * expected - 100, abs=0.1)
    assert table["long"]["seconds"] == 0.5
    twice = areas([one for one in made if one.system == "long" and one.kind == KINDS[0]], {name: np.array([1, 2]) for name in folders})
    assert twice[0] == pytest.approx(twice[1])
    weights = np.array([1.0 + 2 * (name == "folder 3") for name in folders])
    weighted = areas(
        [one for one in made if one.system == "long" and one.kind == KINDS[0] and one.seed == 0],
        {name: np.array([1 + 2 * (name == "folder 3")]) for name in folders},
    )
    assert weighted[0] == pytest.approx(100 * roc_auc_score(labels, sure[0], sample_weight=weights))


def test_ranks_become_means_over_queries_and_differences_query_by_query() -> None:
    row = {"right": 2, "kind": RANKED[0], "title": "folder", "query": "q"}
    assert rank("long", 0, row, [0.1, 0.3, 0.2, 0.0]).reciprocal == 1 / 2
    assert rank("long", 0, row, [0.5, 0.5, 0.5]).reciprocal == 1 / 3  # in the order of BM25
    assert rank("program", None, row, [False, False, True]).reciprocal == 1
    assert rank("long", 0, {**row, "right": -1}, [1.0, 0.0]).reciprocal == 0
    ranks = [
        Rank(name, seed, kind, f"folder {question}", str(question), 1.0 if name == "long" and question else 0.5, 2.0)
        for kind in RANKED
        for name in ("bm25", "best", "two", "long")
        for question in (0, 1)
        for seed in (0, 1)
    ]
    table = ranking_summary(ranks)
    assert table["long"][RANKED[0]] == [75.0, 50.0, 100.0]
    assert table["long"][f"{RANKED[1]}, more than best"][0] == 25.0
    assert table["two"]["seconds"] == 2.0


def test_an_interval_is_wider_where_pages_differ_than_where_questions_of_a_page_do() -> None:
    between = interval({f"page {page}": [float(page % 2)] * 4 for page in range(20)})
    within = interval({f"page {page}": [0.0, 1.0, 0.0, 1.0] for page in range(20)})
    assert between[0] == within[0] == 50.0
    assert between[2] - between[1] > 20
    assert within[2] - within[1] == 0
