"""A run keeps every answer; tables are by the length of documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.dev.benchmarks.report import in_rows
from scripts.dev.studies.qa_run import ScoredAnswer, run_readers
from scripts.dev.studies.qa_table import card_results, tabulate, to_markdown, write_report


class Fixed:
    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text

    def answer(self, record: dict) -> str:
        return self.text


RECORDS = [
    {"id": "a", "tokens": 400, "answers": {"text": ["yes"], "answer_start": [0]}, "question": "", "context": "yes"},
    {"id": "b", "tokens": 600, "answers": {"text": ["no"], "answer_start": [0]}, "question": "", "context": "no"},
]


@pytest.fixture
def answers() -> list[ScoredAnswer]:
    return run_readers([Fixed("one", "yes"), Fixed("other", "no")], RECORDS, "set")


def test_table_of_answers_is_by_length(answers: list[ScoredAnswer]) -> None:
    rows = tabulate(answers)["set"]
    assert list(rows["one"]) == ["<=512", "<=1024", "all"]
    assert (rows["one"]["all"]["exact_match"], rows["one"]["all"]["n"]) == (50.0, 2)
    assert "exact_match_se" not in rows["one"]["all"]  # of two questions


def test_hops_of_a_lookup_make_groups_and_lengths_come_from_the_record() -> None:
    records = [{**RECORDS[0], "hops": 1, "length": 1024}, {**RECORDS[1], "hops": 2, "length": 2048}]
    answers = run_readers([Fixed("one", "yes")], records, "lookup")
    assert [(a.group, a.length) for a in answers] == [("lookup, 1 hop", 1024), ("lookup, 2 hops", 2048)]


def test_stored_answers_give_the_table_and_the_card(answers: list[ScoredAnswer], tmp_path: Path) -> None:
    table = write_report(tmp_path / "sub" / "qa", answers, {"machine": "a test"}, "Title")
    stored = json.loads((tmp_path / "sub" / "qa.json").read_text())
    assert stored["table"] == json.loads(in_rows(table))
    rows = [dict(zip(stored["answers"]["columns"], row, strict=True)) for row in stored["answers"]["rows"]]
    assert [ScoredAnswer(**row).exact for row in rows] == [answer.exact for answer in answers]
    text = (tmp_path / "sub" / "qa.md").read_text()
    assert "| other | 0.0 | 100.0 | 50.0 |" in text
    assert "≤ 512 (n=1)" in to_markdown(table)
    assert "- machine: a test" in text
    rows = card_results(table, "one")
    assert [(row["dataset"], row["value"]) for row in rows][-1] == ("set, all lengths", 50.0)
