"""Metrics: each loads by its name, and has the scores of the official script or library."""

from __future__ import annotations

import importlib
import random
import re
import shutil
import string
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hf_longattn.evaluation.metrics as metrics
from hf_longattn.evaluation import load_metric
from hf_longattn.evaluation.metrics import long_classification, long_qa
from hf_longattn.evaluation.metrics.entities import entities_of, scheme_of
from hf_longattn.evaluation.metrics.rouge import NAMES
from hf_longattn.names import module_names
from tests.cases import every_case

pytestmark = pytest.mark.usefixtures("no_network")


def reference(identifier: str, text: str, length: int) -> dict:
    return {
        "id": identifier,
        "answers": {"text": [text] if text else [], "answer_start": [0] if text else []},
        "length": length,
    }


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


def test_long_qa_scores_answers_by_document_length() -> None:
    result = load_metric("long_qa").compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result["n"] == 4
    assert result["exact_match"] == 50.0
    assert result["f1"] == pytest.approx(100 * 2.5 / 4)
    assert {name: (b["n"], b["exact_match"]) for name, b in result["buckets"].items()} == {
        "<=512": (2, 50.0),
        "<=1024": (1, 100.0),
        ">8192": (1, 0.0),
    }
    # fewer than ten
    assert not any(name.endswith("_se") for part in (result, *result["buckets"].values()) for name in part)


def squad_2(prediction: str, answers: list[str]) -> tuple[float, float]:
    """evaluate-v2.0.py of SQuAD: ``get_raw_scores`` with ``compute_exact`` and ``compute_f1``, written as it describes
    them."""

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
        assert long_qa.score_answer(prediction, answers) == pytest.approx(squad_2(prediction, answers)), (
            prediction,
            answers,
        )


def test_long_qa_refuses_a_question_without_a_prediction() -> None:
    with pytest.raises(ValueError, match="no prediction for question 'd'"):
        load_metric("long_qa").compute(predictions=PREDICTIONS[:3] + PREDICTIONS[:1], references=REFERENCES)


def test_long_classification_scores_classes_by_document_length() -> None:
    labels, found, lengths = [0, 0, 1, 1, 2] * 2, [0, 1, 1, 1, 0] * 2, [10, 512, 600, 9000, 9000] * 2
    references = [{"label": label, "length": length} for label, length in zip(labels, lengths, strict=True)]
    result = load_metric("long_classification").compute(predictions=found, references=references)
    assert (result["accuracy"], result["n"]) == (pytest.approx(60.0), 10)
    assert result["accuracy_se"] == pytest.approx(100 * (0.6 * 0.4 / 9) ** 0.5)
    assert result["macro_f1"] == pytest.approx(100 * (2 / 4 + 4 / 5 + 0) / 3)
    pairs = list(zip(labels, found, strict=True))
    without = [long_classification.summarise(pairs[:place] + pairs[place + 1 :])["macro_f1"] for place in range(10)]
    mean = sum(without) / 10
    # the jackknife's
    assert result["macro_f1_se"] == pytest.approx((9 / 10 * sum((score - mean) ** 2 for score in without)) ** 0.5)
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
        assert result["macro_f1"] == pytest.approx(
            100 * metrics.f1_score(truth, predicted, average="macro", zero_division=0)
        )


ROOT = Path(__file__).resolve().parents[2]


def example_of(name: str) -> tuple[Any, Any, str]:
    """Its module's predictions and references that agree, and the score that is then 100."""
    module = importlib.import_module(f"{metrics.__name__}.{name}")
    example = getattr(module, "EXAMPLE", None)
    message = (
        f"{module.__file__} needs EXAMPLE = (predictions, references, score): lists that agree, and the name of the "
        "score that is "
        'then 100; see "Add a metric" in docs/extending.md.'
    )
    assert isinstance(example, tuple), message
    assert len(example) == 3, message
    return example


@every_case("name", module_names("evaluation.metrics"))
def test_every_metric_loads_by_name(name: str) -> None:
    check_metric(load_metric(name), name)


def check_metric(metric: Any, name: str) -> None:
    """It is described, and computes the example of its module; fewer than ten items have no standard error."""
    predictions, references, score = example_of(name)
    for items in (9, 10):
        result = metric.compute(predictions=(predictions * items)[:items], references=(references * items)[:items])
        assert (result[score], result["n"]) == (pytest.approx(100.0), items)
        assert result.get(f"{score}_se") == (pytest.approx(0.0, abs=1e-6) if items >= 10 else None)
        assert items >= 10 or not any(name.endswith("_se") for name in result)


@pytest.fixture
def dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files are metrics of the package."""
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    yield tmp_path
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(f"{metrics.__name__}.{file.stem}", None)


def test_metric_file_dropped_in_place_is_found_by_name(dropped: Path) -> None:
    shutil.copy(ROOT / "examples" / "extend" / "same_length.py", dropped)
    assert "same_length" in module_names("evaluation.metrics")
    result = load_metric("same_length").compute(predictions=["ab", "c"] * 5, references=["xy", "xyz"] * 5)
    assert result == pytest.approx({"same_length": 50.0, "same_length_se": 50 / 3, "n": 10})
    check_metric(load_metric("same_length"), "same_length")


def test_metric_file_without_an_example_is_refused(dropped: Path) -> None:
    (dropped / "empty.py").write_text("", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"empty\.py needs EXAMPLE = \(predictions, references, score\)"):
        example_of("empty")


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
    pytest.importorskip("seqeval")
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
        result = load_metric("entities").compute(predictions=documents, references=documents)
        seqeval, scheme = (pytest.importorskip(f"seqeval.{module}") for module in ("metrics", "scheme"))
        strict = {"mode": "strict", "scheme": scheme.IOB1}
        assert (
            result["f1"] == pytest.approx(100 * seqeval.f1_score(documents, documents, **strict)) == pytest.approx(100)
        )


def test_entity_scores_have_the_error_of_a_ratio() -> None:
    predicted, gold = [["B-A", "I-A", "O", "B-B"], ["B-A"]], [["B-A", "I-A", "I-A", "B-B"], ["B-A"]]
    scores = load_metric("entities").compute(predictions=predicted, references=gold)
    assert scores == pytest.approx({"precision": 200 / 3, "recall": 200 / 3, "f1": 200 / 3, "accuracy": 80.0, "n": 2})
    many = load_metric("entities").compute(predictions=predicted * 6, references=gold * 6)
    spread = (12 / 11 * 6 * 2 * (2 / 3) ** 2) ** 0.5 / 36  # residuals 2 - 4f and 2 - 2f, f = 2/3, of 36 entities
    assert (many["f1"], many["f1_se"]) == (pytest.approx(200 / 3), pytest.approx(100 * spread))


@pytest.mark.parametrize(("prefixes", "name"), [("BI", "IOB2"), ("BIES", "IOBES"), ("BILU", "BILOU")])
def test_random_tags_have_the_scores_of_seqeval(prefixes: str, name: str) -> None:
    seqeval, scheme = (pytest.importorskip(f"seqeval.{module}") for module in ("metrics", "scheme"))
    choose = random.Random(0)
    names = ["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in "AB")]

    def documents() -> list[list[str]]:
        return [choose.choices(names, k=9) for _ in range(20)]

    for gold, predicted in (
        (documents(), documents()),
        (documents(), [["O"] * 9] * 20),
        ([["O"] * 9] * 20, documents()),
    ):
        predicted = [
            [choose.choice(pair) for pair in zip(*tags, strict=True)] for tags in zip(gold, predicted, strict=True)
        ]
        result = load_metric("entities").compute(predictions=predicted, references=gold)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing predicted
            strict: dict[str, Any] = {"mode": "strict", "scheme": getattr(scheme, name)}
            report = seqeval.classification_report(gold, predicted, output_dict=True, **strict)["micro avg"]
        expected = [report["precision"], report["recall"], report["f1-score"], seqeval.accuracy_score(gold, predicted)]
        assert [result[score] for score in ("precision", "recall", "f1", "accuracy")] == pytest.approx(
            [100 * value for value in expected]
        )


def test_random_texts_have_the_scores_of_rouge_score() -> None:
    """Empty texts, accents and digits. Few words and several lines give many ties of longest common subsequences."""
    choose = random.Random(0)
    words = [
        "the",
        "model",
        "of",
        "long",
        "text",
        "is",
        "good",
        "Café",
        "naïve",
        "2024",
        "ff-dd",
        "and",
        "fast.",
        "über,",
        "we",
    ]

    def text() -> str:
        return "\n".join(" ".join(choose.choices(words, k=choose.randint(0, 12))) for _ in range(choose.randint(0, 4)))

    pairs = [(text(), text()) for _ in range(100)]
    result = load_metric("rouge").compute(
        predictions=[pair[0] for pair in pairs], references=[pair[1] for pair in pairs]
    )
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(list(NAMES))
    scores = [scorer.score(reference, prediction) for prediction, reference in pairs]
    expected = {name: 100 * sum(score[name].fmeasure for score in scores) / 100 for name in NAMES}
    assert {name: result[name] for name in NAMES} == pytest.approx(expected)
    assert result["n"] == 100


def test_rouge_reads_other_scripts_than_latin() -> None:
    pytest.importorskip("rouge_score")
    texts = [
        "Рыжая лиса прыгает через пса.",
        "敏捷的狐狸跳过了懒狗。",
        "すばやい狐",
        "η γρήγορη αλεπού",
        "तेज़ लोमड़ी कूदती है",
        "الثعلب السريع",
        "빠른 여우가",
        "สุนัขจิ้งจอก",
        "שועל מהיר",
        "À é",
    ]
    result = {text: load_metric("rouge").compute(predictions=[text], references=[text]) for text in texts}
    wrong = {
        text: scores
        for text, scores in result.items()
        if not scores["rouge1"] == scores["rougeLsum"] == pytest.approx(100)
    }
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
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    both = load_metric("rouge").compute(predictions=["naïve fox", "лиса"], references=["a na fox", "лиса"])
    alone = rouge_scorer.RougeScorer(["rouge1"]).score("a na fox", "naïve fox")["rouge1"].fmeasure
    assert both["rouge1"] == pytest.approx(100 * (alone + 1) / 2)


def test_random_transcripts_have_the_rates_of_jiwer() -> None:
    """Also of empty predictions and references, doubled spaces and other scripts."""
    jiwer = pytest.importorskip("jiwer")
    choose, words = random.Random(0), ["a", "naïve", "他", "Лиса", "don't", "x.", ""]
    predictions, references = (
        [" ".join(choose.choices(words, k=choose.randint(0, 6))) for _ in range(200)] for _ in range(2)
    )
    result = load_metric("wer").compute(predictions=predictions, references=references)
    assert result["wer"] == pytest.approx(100 * jiwer.wer(references, predictions))
    assert result["cer"] == pytest.approx(100 * jiwer.cer(references, predictions))
