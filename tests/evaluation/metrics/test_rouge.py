"""ROUGE, worked by hand."""

from __future__ import annotations

import pytest

from hf_longattn.evaluation.metrics.rouge import rouge, rouge_scores


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("The cat sat.", "the cat sat", (1.0, 1.0, 1.0, 1.0)),
        ("the cat", "the cat sat on", (4 / 6, 2 / 4, 4 / 6, 4 / 6)),
        ("sat cat the", "the cat sat", (1.0, 0.0, 1 / 3, 1 / 3)),
        ("a b\nc d", "c d\na b", (1.0, 4 / 6, 0.5, 1.0)),  # Lsum takes the sentences one by one
        ("", "the cat", (0.0, 0.0, 0.0, 0.0)),
        ("x", "y", (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_rouge(prediction: str, reference: str, expected: tuple[float, ...]) -> None:
    assert rouge(prediction, reference) == pytest.approx(expected)


def test_rouge_is_a_mean_over_texts() -> None:
    names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    expected = {"n": 2, **dict.fromkeys(names, 50.0), **{f"{name}_se": 50.0 for name in names}}
    assert rouge_scores(["a b", "x"], ["a b", "y"]) == pytest.approx(expected)
    assert rouge_scores([], [])["rouge1_se"] == 0.0
