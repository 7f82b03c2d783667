"""Ranked candidates and correlated similarities are scored as scikit-learn, SciPy and sentence-transformers score them."""

from __future__ import annotations

import math
import random

import pytest

from hf_longattn.evaluation import load_metric


def rankings(choose: random.Random, queries: int) -> tuple[list[list[float]], list[list[int]]]:
    """Scores without ties and relevance of one to five among up to thirty candidates."""
    relevance = [[1] * choose.randint(1, 5) + [0] * choose.randint(0, 25) for _ in range(queries)]
    for row in relevance:
        choose.shuffle(row)
    return [[choose.gauss(0, 1) for _ in row] for row in relevance], relevance


def test_random_rankings_have_the_scores_of_sentence_transformers() -> None:
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    reranking = pytest.importorskip("sentence_transformers.cross_encoder.evaluation").CrossEncoderRerankingEvaluator
    scores, relevance = rankings(random.Random(0), 50)
    result = load_metric("ranking").compute(predictions=scores, references=relevance)
    evaluator = evaluation.InformationRetrievalEvaluator(
        {str(number): "" for number in range(50)},
        {f"{number}.{at}": "" for number, row in enumerate(relevance) for at in range(len(row))},
        {str(number): {f"{number}.{at}" for at, right in enumerate(row) if right} for number, row in enumerate(relevance)},
    )
    expected = evaluator.compute_metrics(
        [[{"corpus_id": f"{number}.{at}", "score": score} for at, score in enumerate(row)] for number, row in enumerate(scores)]
    )
    assert result["accuracy_at_1"] == pytest.approx(100 * expected["accuracy@k"][1])
    assert result["mrr"] == pytest.approx(100 * expected["mrr@k"][10])
    assert result["ndcg"] == pytest.approx(100 * expected["ndcg@k"][10])
    rows = [reranking([]).compute_metrics(*row) for row in zip(relevance, scores, strict=True) if len(row[0]) > 1]
    some = load_metric("ranking").compute(
        predictions=[row for row in scores if len(row) > 1], references=[row for row in relevance if len(row) > 1]
    )
    assert [some["mrr"], some["ndcg"]] == pytest.approx([100 * sum(row[place] for row in rows) / len(rows) for place in (0, 1)])


def test_rank_among_equal_scores_is_the_worst() -> None:
    """So a model with equal scores, or with NaN for all candidates, finds nothing."""
    predictions = [[1.0] * 4, [0.0] * 12, [5.0, 1.0], [math.nan] * 5, [math.nan, 1.0], [2.0]]
    result = load_metric("ranking").compute(
        predictions=predictions, references=[[1, 0, 0, 0], [1] + [0] * 11, [1, 0], [1, 0, 0, 0, 0], [1, 0], [1]]
    )
    assert result["mrr"] == pytest.approx(100 * (1 / 4 + 0 + 1 + 1 / 5 + 1 / 2 + 1) / 6)
    assert load_metric("ranking").compute(predictions=[[1.0, 2.0]], references=[[0, 0]])["ndcg"] == 0


@pytest.mark.parametrize("count", [2, 9, 10, 200])
def test_correlations_are_those_of_scipy_with_their_errors(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    choose = random.Random(count)
    similarities = [choose.gauss(0, 1) for _ in range(count)]
    scores = [round(value + choose.gauss(0, 1)) + 10.0 * at for at, value in enumerate(similarities)][::-1]  # with ties
    result = load_metric("correlation").compute(predictions=similarities, references=scores)
    spearman, pearson = (correlate(similarities, scores)[0] for correlate in (stats.spearmanr, stats.pearsonr))
    errors = {}
    if count >= 10:
        errors["spearman_se"] = 100 * ((1 + spearman**2 / 2) / (count - 3)) ** 0.5 * (1 - spearman**2)
        errors["pearson_se"] = 100 / (count - 3) ** 0.5 * (1 - pearson**2)
    assert result == pytest.approx({"spearman": 100 * spearman, "pearson": 100 * pearson, "n": count, **errors})


@pytest.mark.parametrize(
    ("predictions", "references"), [([0.1, 0.2], [1.0, 1.0]), ([0.3] * 12, [1.0, 2.0] * 6), ([math.nan, 0.2], [1.0, 2.0]), ([0.1], [1.0])]
)
def test_equal_scores_have_no_correlation(predictions: list[float], references: list[float]) -> None:
    assert load_metric("correlation").compute(predictions=predictions, references=references) == {"n": len(references)}
