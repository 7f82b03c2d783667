"""Baselines: a random candidate, and words alone."""

from __future__ import annotations

from typing import Any

from scripts.dev.studies.qa_baselines import LexicalRule, RandomCandidate, candidates

MODULE = """
from core.shapes import Polygon
class Network:
    def push(self, excess, height=(1, 2), *, labels: dict[str, int] = {}): ...
    def run(self, graph):
        self.push(graph, max(graph, 3), 4)
def small(x): ...
class Square(Polygon): ...
"""
LINES = "# lookup stone river\nx = 1\n# lookup river blue\n"
QUESTIONS = {
    "In `Network.run`, which parameter receives `graph`?": "excess",
    "In `Network.run`, which parameter receives `max(graph, 3)`?": "height",
    "In `Network.run`, which parameter receives `4`?": "labels",
    "Which module does the base class of `Square` come from?": "core.shapes",
}


def record(question: str, context: str = MODULE) -> dict[str, Any]:
    return {"id": question, "question": question, "context": context}


def test_lexical_baseline_takes_one_hop_of_a_lookup() -> None:
    assert candidates(record("# lookup stone", LINES)) == [("stone", "river"), ("river", "blue")]
    assert LexicalRule().answer(record("# lookup stone", LINES)) == "river"


def test_lexical_baseline_compares_words() -> None:
    assert LexicalRule().answer(record("In `run`, which parameter receives `heights`?")) == "height"


def test_random_baseline_depends_on_the_question_alone() -> None:
    records = [{**record(next(iter(QUESTIONS))), "id": str(i)} for i in range(40)]
    answers = [RandomCandidate().answer(one) for one in records]
    assert answers == [RandomCandidate().answer(one) for one in records]
    assert len(set(answers)) == 3
    assert RandomCandidate().answer({**records[0], "context": "x = 1"}) == ""
