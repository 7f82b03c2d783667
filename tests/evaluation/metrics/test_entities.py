"""Entities, counted as CoNLL's script counts them."""

from __future__ import annotations

import pytest

from hf_longattn.evaluation.metrics.entities import entities_of, entity_scores


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-A I-A O B-A", {("A", 0, 2), ("A", 3, 4)}),
        ("B-A B-A I-B", {("A", 0, 1), ("A", 1, 2), ("B", 2, 3)}),
        ("I-A I-A O I-B", {("A", 0, 2), ("B", 3, 4)}),
        ("S-A B-A E-A O", {("A", 0, 1), ("A", 1, 3)}),
        ("O NOUN VERB", {("NOUN", 1, 2), ("VERB", 2, 3)}),
        ("O O", set()),
    ],
)
def test_entities(tags: str, expected: set) -> None:
    assert entities_of(tags.split()) == expected


def test_scores_of_entities() -> None:
    scores = entity_scores([["B-A", "I-A", "O", "B-B"], ["B-A"]], [["B-A", "I-A", "I-A", "B-B"], ["B-A"]])
    errors = {"precision_se": 200 / 9, "recall_se": 200 / 9, "f1_se": 200 / 9, "accuracy_se": 100 * (0.2**2 + 0.2**2) ** 0.5 * 2**0.5 / 5}
    shares = {"precision": 200 / 3, "recall": 200 / 3, "f1": 200 / 3, "accuracy": 80.0, "n": 2, **errors}
    assert scores == pytest.approx(shares)  # residuals 2 - 4f and 2 - 2f, f = 2/3; their norm over 6 entities
