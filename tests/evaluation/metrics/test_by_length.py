"""The metrics: SQuAD's scores and those of classes, by document length, without a network."""

from __future__ import annotations

from pathlib import Path

import evaluate
import pytest

from hf_longattn.errors import LongAttentionError
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
def test_scores_by_length(source: str) -> None:
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
    assert result["buckets"]["<=512"]["exact_match_se"] == pytest.approx(50.0)
    assert result["buckets"]["<=1024"]["exact_match_se"] == 0.0


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [  # worked by hand from SQuAD's official evaluation script
        ("The  Red, fox.", ["red fox"], 1.0, 1.0),
        ("red fox jumps", ["red fox"], 0.0, 0.8),
        ("a red", ["the red fox"], 0.0, 2 / 3),
        ("read_csv", ["read_table"], 0.0, 0.0),
        ("wrong", ["right", "Wrong!"], 1.0, 1.0),
        ("b b b", ["b a b"], 0.0, 0.8),  # "a" is an article
        ("", ["x"], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("x", [], 0.0, 0.0),
    ],
)
def test_same_as_squad(prediction: str, answers: list[str], exact: float, f1: float) -> None:
    assert long_qa.score_answer(prediction, answers) == (exact, pytest.approx(f1))


def test_missing_prediction_is_an_error() -> None:
    with pytest.raises(ValueError, match="no prediction for question 'd'"):
        load_metric("long_qa").compute(predictions=PREDICTIONS[:3] + PREDICTIONS[:1], references=REFERENCES)


def test_unknown_metric_is_refused() -> None:
    with pytest.raises(LongAttentionError, match="Did you mean 'long_qa'"):
        load_metric("longqa")


@pytest.mark.parametrize("source", ["package", "path"])
def test_classes_by_length(source: str) -> None:
    metric = load_metric("long_classification") if source == "package" else evaluate.load(str(Path(long_classification.__file__)))
    labels, found, lengths = [0, 0, 1, 1, 2], [0, 1, 1, 1, 0], [10, 512, 600, 9000, 9000]
    references = [{"label": label, "length": length} for label, length in zip(labels, lengths, strict=True)]
    result = metric.compute(predictions=found, references=references)
    assert (result["accuracy"], result["n"]) == (pytest.approx(60.0), 5)
    assert result["accuracy_se"] == pytest.approx(100 * (0.6 * 0.4 / 4) ** 0.5)
    assert result["macro_f1"] == pytest.approx(100 * (2 / 4 + 4 / 5 + 0) / 3)
    pairs = list(zip(labels, found, strict=True))
    without = [long_classification.summarise(pairs[:place] + pairs[place + 1 :])["macro_f1"] for place in range(5)]
    mean = sum(without) / 5
    assert result["macro_f1_se"] == pytest.approx((4 / 5 * sum((score - mean) ** 2 for score in without)) ** 0.5)  # the jackknife's
    assert result["buckets"]["<=1024"]["macro_f1_se"] == 0.0
    assert {name: (part["n"], part["accuracy"]) for name, part in result["buckets"].items()} == {
        "<=512": (2, 50.0),
        "<=1024": (1, 100.0),
        ">8192": (2, 50.0),
    }
