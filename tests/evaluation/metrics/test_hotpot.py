"""HotpotQA's metric on cases worked by hand from hotpot_evaluate_v1.py."""

from __future__ import annotations

import pytest

from hf_longattn.evaluation.metrics.hotpot import answer_score, hotpot_scores, support_score
from tests.cells import every_cell


@every_cell(
    ("prediction", "gold", "expected"),
    [
        ("the Red Fox", "red fox", (1.0, 1.0, 1.0, 1.0)),
        ("red fox runs", "red fox", (0.0, 0.8, 2 / 3, 1.0)),
        ("fox", "red fox", (0.0, 2 / 3, 1.0, 0.5)),
        ("yes", "yes", (1.0, 1.0, 1.0, 1.0)),
        ("yes", "no", (0.0, 0.0, 0.0, 0.0)),
        ("yes sir", "yes", (0.0, 0.0, 0.0, 0.0)),  # yes and no give nothing for a part
        ("no", "no wolf", (0.0, 0.0, 0.0, 0.0)),
        ("", "red fox", (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_answers(prediction: str, gold: str, expected: tuple[float, ...]) -> None:
    assert answer_score(prediction, gold) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ([("a", 0), ("b", 1)], [("b", 1), ("a", 0)], (1.0, 1.0, 1.0, 1.0)),
        ([("a", 0)], [("a", 0), ("b", 1)], (0.0, 2 / 3, 1.0, 0.5)),
        ([("a", 0), ("a", 1), ("c", 0)], [("a", 0), ("b", 1)], (0.0, 0.4, 1 / 3, 0.5)),
        ([], [("a", 0)], (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_supporting_facts(prediction: list, gold: list, expected: tuple[float, ...]) -> None:
    assert support_score(prediction, gold) == pytest.approx(expected)


def test_joint_scores_are_of_products_of_precision_and_recall() -> None:
    """First question: answer P 2/3, R 1; facts P 1, R 1/2; joint P 2/3, R 1/2, F1 4/7. Second: all right. Third: only the facts."""
    facts = [([("a", 0)], [("a", 0), ("b", 1)]), ([("a", 0)], [("a", 0)]), ([("a", 0)], [("a", 0)])]
    result = hotpot_scores([("red fox runs", "red fox"), ("yes", "yes"), ("no", "yes")] * 4, facts * 4)
    assert result["joint_prec"] == pytest.approx(100 * (2 / 3 + 1) / 3)
    assert result["joint_recall"] == pytest.approx(100 * (1 / 2 + 1) / 3)
    assert result["joint_f1"] == pytest.approx(100 * (4 / 7 + 1) / 3)
    assert result["joint_em"] == pytest.approx(100 / 3)
    assert result["sp_em"] == pytest.approx(200 / 3)
    assert result["f1"] == pytest.approx(100 * (0.8 + 1) / 3)
    assert result["sp_em_se"] == pytest.approx(100 * (2 / 9) ** 0.5 / 11**0.5)
