"""Baselines answer from names alone."""

from __future__ import annotations

import pytest

from research.qa_baselines import LexicalRule, RandomCandidate, candidates, stems

MODULE = """
class ReadBuffer:
    async def fill(self): ...
def write_records(rows):
    return ReadBuffer
def reading_list(): ...
"""
LINES = "# lookup stone river\nx = 1\n# lookup river blue\n"


def test_candidates() -> None:
    assert [name for name, _ in candidates(MODULE)] == ["ReadBuffer", "fill", "write_records", "reading_list"]
    assert candidates(LINES) == [("stone", "river"), ("river", "blue")]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Writes the record to disk.", "write_records"),
        ("A buffer for what was read.", "ReadBuffer"),
        ("Which list is being read?", "reading_list"),
    ],
)
def test_lexical_rule(question: str, answer: str) -> None:
    assert LexicalRule().answer({"question": question, "context": MODULE}) == answer


def test_lexical_rule_takes_one_hop() -> None:
    assert LexicalRule().answer({"question": "# lookup river", "context": LINES}) == "blue"
    assert LexicalRule().answer({"question": "# lookup stone", "context": LINES}) == "river"


def test_random_candidate_depends_on_the_question_alone() -> None:
    records = [{"id": str(i), "context": MODULE, "question": ""} for i in range(40)]
    answers = [RandomCandidate().answer(record) for record in records]
    assert answers == [RandomCandidate().answer(record) for record in records]
    assert len(set(answers)) == 4
    assert RandomCandidate().answer({"id": "1", "context": "x = 1"}) == ""


def test_stems() -> None:
    assert stems("HTTPReader readers_reading 42") == ["http", "read", "read", "read", "42"]
