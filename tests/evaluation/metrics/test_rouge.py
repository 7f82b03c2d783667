"""ROUGE is rouge_score's, and texts in other scripts than Latin are read."""

from __future__ import annotations

import random

import pytest

from hf_longattn.evaluation import load_metric
from hf_longattn.evaluation.metrics.rouge import NAMES

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")


def test_random_texts_have_the_scores_of_rouge_score() -> None:
    """Empty texts, accents and digits. Few words and several lines give many ties of longest common subsequences."""
    choose = random.Random(0)
    words = ["the", "model", "of", "long", "text", "is", "good", "Café", "naïve", "2024", "ff-dd", "and", "fast.", "über,", "we"]

    def text() -> str:
        return "\n".join(" ".join(choose.choices(words, k=choose.randint(0, 12))) for _ in range(choose.randint(0, 4)))

    pairs = [(text(), text()) for _ in range(100)]
    result = load_metric("rouge").compute(predictions=[pair[0] for pair in pairs], references=[pair[1] for pair in pairs])
    scorer = rouge_scorer.RougeScorer(list(NAMES))
    scores = [scorer.score(reference, prediction) for prediction, reference in pairs]
    expected = {name: 100 * sum(score[name].fmeasure for score in scores) / 100 for name in NAMES}
    assert {name: result[name] for name in NAMES} == pytest.approx(expected)
    assert result["n"] == 100


def test_rouge_reads_other_scripts_than_latin() -> None:
    texts = [
        "Рыжая лиса прыгает через пса.", "敏捷的狐狸跳过了懒狗。", "すばやい狐", "η γρήγορη αλεπού", "तेज़ लोमड़ी कूदती है", "الثعلب السريع",
        "빠른 여우가", "สุนัขจิ้งจอก", "שועל מהיר", "À é",
    ]  # fmt: skip
    result = {text: load_metric("rouge").compute(predictions=[text], references=[text]) for text in texts}
    wrong = {text: scores for text, scores in result.items() if not scores["rouge1"] == scores["rougeLsum"] == pytest.approx(100)}
    assert not wrong
    pairs = {
        ("Лиса спит", "лиса ест"): 50.0,
        ("猫坐在垫子上", "狗坐在垫子上。"): 100 * 5 / 6,  # each character is a word
        ("Лиса читает Google", "Лиса читает, Google"): 100.0,
        ("the red fox", "рыжая лиса"): 0.0,
    }
    for (prediction, reference), expected in pairs.items():
        scores = load_metric("rouge").compute(predictions=[prediction], references=[reference])
        assert scores["rouge1"] == pytest.approx(expected), (prediction, reference)


def test_rouge_scores_english_texts_the_same_beside_other_scripts() -> None:
    """The tokenizer is chosen by each reference, never by the prediction."""
    both = load_metric("rouge").compute(predictions=["naïve fox", "лиса"], references=["a na fox", "лиса"])
    alone = rouge_scorer.RougeScorer(["rouge1"]).score("a na fox", "naïve fox")["rouge1"].fmeasure
    assert both["rouge1"] == pytest.approx(100 * (alone + 1) / 2)
