"""Ranked candidates and correlated similarities are scored as scikit-learn and SciPy score them."""

from __future__ import annotations

import random

import pytest

from hf_longattn.evaluation import load_metric


def test_ranks_and_gains_are_the_means_over_queries() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    choose = random.Random(0)
    relevance = [[int(number < relevant) for number in range(30)] for relevant in (1, 2, 12)]
    scores = [[choose.random() for _ in row] for row in relevance]
    result = load_metric("ranking").compute(predictions=scores, references=relevance)
    gains = [sklearn.ndcg_score([row], [numbers], k=10) for row, numbers in zip(relevance, scores, strict=True)]
    assert result["ndcg"] == pytest.approx(100 * sum(gains) / 3)
    assert (result["accuracy_at_1"], result["n"]) == (pytest.approx(100 / 3), 3)


def test_the_rank_is_that_of_the_worst_order_of_equal_scores() -> None:
    result = load_metric("ranking").compute(
        predictions=[[1.0] * 4, [0.0] * 12, [5.0, 1.0]], references=[[1, 0, 0, 0], [1] + [0] * 11, [1, 0]]
    )
    assert result["mrr"] == pytest.approx(100 * (1 / 4 + 0 + 1) / 3)


def test_correlations_are_those_of_scipy_with_their_errors() -> None:
    stats = pytest.importorskip("scipy.stats")
    similarities, scores = [0.1, 0.4, 0.4, 0.2, 0.9, 0.3], [1.0, 2.0, 2.0, 3.0, 5.0, 1.0]
    result = load_metric("correlation").compute(predictions=similarities, references=scores)
    spearman = stats.spearmanr(similarities, scores)[0]
    assert result["spearman"] == pytest.approx(100 * spearman)
    assert result["spearman_se"] == pytest.approx(100 * ((1 + spearman**2 / 2) / 3) ** 0.5 * (1 - spearman**2))
    assert result["pearson"] == pytest.approx(100 * stats.pearsonr(similarities, scores)[0])
    assert result["n"] == 6


def test_equal_scores_have_no_correlation() -> None:
    assert load_metric("correlation").compute(predictions=[0.1, 0.2], references=[1.0, 1.0]) == {"n": 2}
