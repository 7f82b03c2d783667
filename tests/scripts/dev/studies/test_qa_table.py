"""A run keeps every answer; tables are by the length of documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.dev.benchmarks.report import in_rows
from scripts.dev.studies.qa_run import ScoredAnswer, bucket_of, run_readers
from scripts.dev.studies.qa_table import card_results, summary_markdown, tabulate, to_markdown, write_report


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


def test_run_is_interleaved(answers: list[ScoredAnswer]) -> None:
    found = [(answer.system, answer.id, answer.exact) for answer in answers]
    assert found == [("one", "a", 1.0), ("other", "a", 0.0), ("one", "b", 0.0), ("other", "b", 1.0)]
    assert all(answer.seconds >= 0 for answer in answers)


def test_table(answers: list[ScoredAnswer]) -> None:
    rows = tabulate(answers)["set"]
    assert list(rows["one"]) == ["<=512", "<=1024", "all"]
    assert (rows["one"]["all"]["exact_match"], rows["one"]["all"]["n"]) == (50.0, 2)
    assert "exact_match_se" not in rows["one"]["all"]  # of two questions


def test_the_summary_weighs_questions_beyond_a_length() -> None:
    records = [{**RECORDS[0], "tokens": 400}, {**RECORDS[0], "id": "c", "tokens": 1500}, {**RECORDS[1], "id": "d", "tokens": 3000}]
    table = tabulate(run_readers([Fixed("one", "yes")], records, "set"))
    summary = summary_markdown(table)
    assert "set (n=2)" in summary
    assert "| one | 50.0 |" in summary
    longer = [{**record, "id": f"{record['id']}{number}"} for number in range(10) for record in records]
    assert "| one | 50.0 ± 0.0 |" in summary_markdown(tabulate(run_readers([Fixed("one", "yes")], longer, "set")))


def test_hops_make_groups_and_lengths_come_from_the_record() -> None:
    records = [{**RECORDS[0], "hops": 1, "length": 1024}, {**RECORDS[1], "hops": 2, "length": 2048}]
    answers = run_readers([Fixed("one", "yes")], records, "lookup")
    assert [(a.group, a.length) for a in answers] == [("lookup, 1 hop", 1024), ("lookup, 2 hops", 2048)]


def test_report(answers: list[ScoredAnswer], tmp_path: Path) -> None:
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


@pytest.mark.parametrize(("length", "bucket"), [(1, "<=512"), (512, "<=512"), (513, "<=1024"), (8192, "<=8192"), (9000, ">8192")])
def test_buckets(length: int, bucket: str) -> None:
    assert bucket_of(length) == bucket
