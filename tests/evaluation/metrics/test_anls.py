"""ANLS by the definition of its paper, written out."""

from __future__ import annotations

import functools
import random

import pytest

from hf_longattn.evaluation import load_metric
from hf_longattn.evaluation.metrics.anls import similarity
from tests.cells import every_cell

pytestmark = pytest.mark.usefixtures("no_network")


@functools.cache
def edits(one: str, other: str) -> int:
    """Levenshtein's recursion."""
    if not one or not other:
        return len(one) + len(other)
    return min(edits(one[1:], other[1:]) + (one[0] != other[0]), edits(one[1:], other) + 1, edits(one, other[1:]) + 1)


def defined(prediction: str, answers: list[str]) -> float:
    """Biten et al. (2019), equation 1: max over answers a of 1 - NL(a, o) where NL < 0.5, and 0 elsewhere."""
    values = []
    for answer in answers:
        share = edits(prediction.lower(), answer.lower()) / max(len(prediction), len(answer), 1)
        values.append(1 - share if share < 0.5 else 0.0)
    return max(values)


def test_random_texts_have_the_score_of_the_definition() -> None:
    choose, some = random.Random(0), 0
    for _ in range(300):
        answers = ["".join(choose.choices("abC", k=choose.randint(1, 9))) for _ in range(choose.randint(1, 3))]
        prediction = "".join(letter for letter in choose.choice(answers) + choose.choice(["", "b", "abc"]) if choose.random() > 0.2)
        assert similarity(prediction, answers) == pytest.approx(defined(prediction, answers)), (prediction, answers)
        some += 0 < similarity(prediction, answers) < 1
    assert some > 50


@every_cell(
    ("prediction", "answers", "score"),
    [
        ("12  Euros ", ["12 euros"], 1.0),  # case and spaces do not count
        ("12 euro", ["12 euros"], 1 - 1 / 8),
        ("ab", ["ax"], 0.0),  # half of it is wrong
        ("abc", ["abx"], 2 / 3),
        ("", ["x"], 0.0),
        ("", [], 1.0),
        ("x", [], 0.0),
        ("wrong", ["right", "Wrong"], 1.0),
    ],
)
def test_cases_worked_by_hand(prediction: str, answers: list[str], score: float) -> None:
    assert similarity(prediction, answers) == pytest.approx(score)


def test_the_metric_is_the_mean_over_questions_with_its_error() -> None:
    result = load_metric("anls").compute(predictions=["abc", "ab"] * 5, references=[["abx"], ["ax", "b"]] * 5)
    assert result == pytest.approx({"anls": 100 / 3, "anls_se": 100 / 9, "n": 10})
