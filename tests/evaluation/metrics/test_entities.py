"""Entities are those of seqeval's strict mode."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest

from hf_longattn.evaluation import load_metric
from hf_longattn.evaluation.metrics.entities import entities_of, scheme_of
from tests.cases import every_case

seqeval = pytest.importorskip("seqeval.metrics")
scheme = pytest.importorskip("seqeval.scheme")


@every_case(
    ("tags", "expected"),
    [
        ("B-A I-A O B-A", {("A", 0, 2), ("A", 3, 4)}),
        ("B-A B-A I-B", {("A", 0, 1), ("A", 1, 2)}),  # an I- of another kind is none
        ("I-A I-A O I-B", set()),
        ("S-A B-A E-A O", {("A", 0, 1), ("A", 1, 3)}),
        ("S-A B-A I-A O", {("A", 0, 1)}),  # an entity of IOBES ends with E-
        ("U-A B-A L-A O", {("A", 0, 1), ("A", 1, 3)}),
        ("O NOUN VERB OTHER X-ray", {("NOUN", 1, 2), ("VERB", 2, 3), ("OTHER", 3, 4), ("X-ray", 4, 5)}),
        ("S-A NOUN", {("A", 0, 1), ("NOUN", 1, 2)}),
        ("O O", set()),
    ],
)
def test_entities_of_tags_are_those_of_the_strict_scheme(tags: str, expected: set) -> None:
    assert entities_of(tags.split(), scheme_of([tags.split()], [])) == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-A I-A O I-A B-A I-B", True),
        ("O I-A", True),
        ("B-A I-A O I-A", False),  # IOB2 with a mistake
        ("S-A O", False),
        ("O NOUN", False),
        ("O O", False),
    ],
)
def test_iob1_tags_are_told_from_iob2(tags: str, expected: bool) -> None:
    documents = [tags.split(), ["O"]]
    assert (scheme_of([], documents) == "IOB1") is expected
    if expected:
        result = load_metric("entities").compute(predictions=documents, references=documents, scheme="IOB1")
        kind = {"mode": "strict", "scheme": scheme.IOB1}
        assert result["f1"] == pytest.approx(100 * seqeval.f1_score(documents, documents, **kind)) == pytest.approx(100)


def test_entity_scores_have_the_error_of_a_ratio() -> None:
    predicted, gold = [["B-A", "I-A", "O", "B-B"], ["B-A"]], [["B-A", "I-A", "I-A", "B-B"], ["B-A"]]
    scores = load_metric("entities").compute(predictions=predicted, references=gold)
    assert scores == pytest.approx({"precision": 200 / 3, "recall": 200 / 3, "f1": 200 / 3, "accuracy": 80.0, "n": 2})
    many = load_metric("entities").compute(predictions=predicted * 6, references=gold * 6)
    spread = (12 / 11 * 6 * 2 * (2 / 3) ** 2) ** 0.5 / 36  # residuals 2 - 4f and 2 - 2f, f = 2/3, of 36 entities
    assert (many["f1"], many["f1_se"]) == (pytest.approx(200 / 3), pytest.approx(100 * spread))


@pytest.mark.parametrize(("prefixes", "name"), [("BI", "IOB2"), ("BIES", "IOBES"), ("BILU", "BILOU")])
def test_random_tags_have_the_scores_of_seqeval(prefixes: str, name: str) -> None:
    choose = random.Random(0)
    names = ["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in "AB")]

    def documents() -> list[list[str]]:
        return [choose.choices(names, k=9) for _ in range(20)]

    for gold, predicted in ((documents(), documents()), (documents(), [["O"] * 9] * 20), ([["O"] * 9] * 20, documents())):
        predicted = [[choose.choice(pair) for pair in zip(*tags, strict=True)] for tags in zip(gold, predicted, strict=True)]
        result = load_metric("entities").compute(predictions=predicted, references=gold)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing predicted
            kind: dict[str, Any] = {"mode": "strict", "scheme": getattr(scheme, name)}
            report = seqeval.classification_report(gold, predicted, output_dict=True, **kind)["micro avg"]
        expected = [report["precision"], report["recall"], report["f1-score"], seqeval.accuracy_score(gold, predicted)]
        assert [result[score] for score in ("precision", "recall", "f1", "accuracy")] == pytest.approx([100 * value for value in expected])
