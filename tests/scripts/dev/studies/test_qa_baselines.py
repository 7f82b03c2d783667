"""Baselines: a random candidate, words alone, and a program that answers nearly everything."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.dev.studies.code_qa import build_code_qa
from scripts.dev.studies.corpus import Module
from scripts.dev.studies.qa_baselines import LexicalRule, Program, RandomCandidate, candidates
from tests.scripts.dev.studies.test_code_qa import BASE, ONE

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


def test_candidates() -> None:
    first, *_, last = QUESTIONS
    assert candidates(record(first)) == [("push excess", "excess"), ("push height", "height"), ("push labels", "labels")]
    assert candidates(record(last)) == [("core.shapes Polygon", "core.shapes")]
    assert candidates(record("# lookup stone", LINES)) == [("stone", "river"), ("river", "blue")]


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_program_answers(question: str) -> None:
    assert Program().answer(record(question)) == QUESTIONS[question]


def test_the_program_on_built_questions(tokenizer: Any) -> None:
    for task, text in (("argument", ONE), ("base", BASE)):
        made = build_code_qa(task, "test", tokenizer, modules=[Module("a", "a/a.py", text)], min_tokens=10, min_distance=0)
        assert made
        assert all(Program().answer(one) == one["answers"]["text"][0] for one in made)
    assert Program().answer(record("In `gone`, which parameter receives `x`?")) == ""


def test_rules_take_one_hop_and_the_program_two() -> None:
    assert LexicalRule().answer(record("# lookup stone", LINES)) == "river"
    assert Program().answer(record("# lookup stone", LINES)) == "blue"


def test_the_lexical_rule_compares_words() -> None:
    assert LexicalRule().answer(record("In `run`, which parameter receives `heights`?")) == "height"


def test_random_candidate_depends_on_the_question_alone() -> None:
    records = [{**record(next(iter(QUESTIONS))), "id": str(i)} for i in range(40)]
    answers = [RandomCandidate().answer(one) for one in records]
    assert answers == [RandomCandidate().answer(one) for one in records]
    assert len(set(answers)) == 3
    assert RandomCandidate().answer({**records[0], "context": "x = 1"}) == ""
