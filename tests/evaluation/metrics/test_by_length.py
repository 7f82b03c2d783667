"""The metrics: SQuAD's scores and those of classes, by document length, without a network."""

from __future__ import annotations

import random
import re
import string
from pathlib import Path

import evaluate
import pytest

from hf_longattn.evaluation import load_metric
from hf_longattn.evaluation.metrics import long_classification, long_qa

pytestmark = pytest.mark.usefixtures("no_network")


def reference(identifier: str, text: str, length: int) -> dict:
    return {"id": identifier, "answers": {"text": [text] if text else [], "answer_start": [0] if text else []}, "length": length}


PREDICTIONS = [
    {"id": "a", "prediction_text": "read_csv"},
    {"id": "b", "prediction_text": "the red fox"},
    {"id": "c", "prediction_text": ""},
    {"id": "d", "prediction_text": "wrong"},
]
REFERENCES = [
    reference("a", "read_csv", 100),
    reference("b", "red wolf", 512),
    reference("c", "", 513),
    reference("d", "right", 9000),
]


@pytest.mark.parametrize("source", ["package", "path"])
def test_long_qa_scores_answers_by_document_length(source: str) -> None:
    metric = load_metric("long_qa") if source == "package" else evaluate.load(str(Path(long_qa.__file__)))
    result = metric.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert isinstance(metric, evaluate.Metric)
    assert result["n"] == 4
    assert result["exact_match"] == 50.0
    assert result["f1"] == pytest.approx(100 * 2.5 / 4)
    assert {name: (b["n"], b["exact_match"]) for name, b in result["buckets"].items()} == {
        "<=512": (2, 50.0),
        "<=1024": (1, 100.0),
        ">8192": (1, 0.0),
    }
    assert not any(name.endswith("_se") for part in (result, *result["buckets"].values()) for name in part)  # fewer than ten


def squad_2(prediction: str, answers: list[str]) -> tuple[float, float]:
    """evaluate-v2.0.py of SQuAD: ``get_raw_scores`` with ``compute_exact`` and ``compute_f1``, written as it describes them."""

    def words(text: str) -> list[str]:
        text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    def f1(gold: list[str], found: list[str]) -> float:
        if not gold or not found:
            return float(gold == found)
        same = sum(min(gold.count(word), found.count(word)) for word in set(gold))
        return 2 * same / (len(gold) + len(found))

    found, golds = words(prediction), [words(answer) for answer in answers if words(answer)] or [[]]
    return max(float(gold == found) for gold in golds), max(f1(gold, found) for gold in golds)


def test_random_answers_have_the_scores_of_the_squad_2_script() -> None:
    choose, words = (
        random.Random(0),
        ["the", "A", "an", "fox", "Fox,", "red", "read_csv", "—", "...", "naïve", "Über-", "2,000", "他"],
    )

    def text() -> str:
        return choose.choice(" \n").join(choose.choices(words, k=choose.randint(0, 4)))

    for _ in range(500):
        prediction, answers = text(), [text() for _ in range(choose.randint(0, 3))]
        assert long_qa.score_answer(prediction, answers) == pytest.approx(squad_2(prediction, answers)), (prediction, answers)


def test_long_qa_refuses_a_question_without_a_prediction() -> None:
    with pytest.raises(ValueError, match="no prediction for question 'd'"):
        load_metric("long_qa").compute(predictions=PREDICTIONS[:3] + PREDICTIONS[:1], references=REFERENCES)


@pytest.mark.parametrize("source", ["package", "path"])
def test_long_classification_scores_classes_by_document_length(source: str) -> None:
    metric = load_metric("long_classification") if source == "package" else evaluate.load(str(Path(long_classification.__file__)))
    labels, found, lengths = [0, 0, 1, 1, 2] * 2, [0, 1, 1, 1, 0] * 2, [10, 512, 600, 9000, 9000] * 2
    references = [{"label": label, "length": length} for label, length in zip(labels, lengths, strict=True)]
    result = metric.compute(predictions=found, references=references)
    assert (result["accuracy"], result["n"]) == (pytest.approx(60.0), 10)
    assert result["accuracy_se"] == pytest.approx(100 * (0.6 * 0.4 / 9) ** 0.5)
    assert result["macro_f1"] == pytest.approx(100 * (2 / 4 + 4 / 5 + 0) / 3)
    pairs = list(zip(labels, found, strict=True))
    without = [long_classification.summarise(pairs[:place] + pairs[place + 1 :])["macro_f1"] for place in range(10)]
    mean = sum(without) / 10
    assert result["macro_f1_se"] == pytest.approx((9 / 10 * sum((score - mean) ** 2 for score in without)) ** 0.5)  # the jackknife's
    assert {name: (part["n"], part["accuracy"], len(part)) for name, part in result["buckets"].items()} == {
        "<=512": (4, 50.0, 3),
        "<=1024": (2, 100.0, 3),
        ">8192": (4, 50.0, 3),
    }


def test_random_classes_have_the_scores_of_scikit_learn() -> None:
    """Also of classes that are never predicted, or only predicted."""
    metrics = pytest.importorskip("sklearn.metrics")
    choose = random.Random(0)
    for labels, found in ((range(4), range(4)), (range(4), [0]), ([1], range(4)), ([0, 2], [1, 2])):
        pairs = [(choose.choice(list(labels)), choose.choice(list(found))) for _ in range(40)]
        truth, predicted = ([pair[place] for pair in pairs] for place in (0, 1))
        result = load_metric("long_classification").compute(
            predictions=predicted, references=[{"label": label, "length": -1} for label in truth]
        )
        assert result["accuracy"] == pytest.approx(100 * metrics.accuracy_score(truth, predicted))
        assert result["macro_f1"] == pytest.approx(100 * metrics.f1_score(truth, predicted, average="macro", zero_division=0))
