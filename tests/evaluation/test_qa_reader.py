"""A reader finds what the model points at; spans of all windows, scores by length and position, and files of
predictions."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import OptionError
from hf_longattn.evaluation.metrics.long_qa import score_alias, score_answer
from hf_longattn.evaluation.qa_reader import (
    Answer,
    QAReader,
    best_answers,
    best_threshold,
    by_question,
    score_answers,
    write_predictions,
)
from hf_longattn.files import read_json
from tests.byte_tokenizer import train_tokenizer
from tests.cases import every_case

CONTEXT = "alpha beta gamma delta " * 60 + "needle " + "alpha beta gamma delta " * 60
RECORD = {"id": "1", "question": "find", "context": CONTEXT}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([CONTEXT, " needle" * 50, "find"], vocab_size=300)


class PointsAt(nn.Module):
    """Scores the given words' tokens highest; remembers its inputs."""

    device = torch.device("cpu")
    config = SimpleNamespace()

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self.ids, self.seen, self.attention = ids, [], nn.Module()

    def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
        self.seen.append(inputs)
        ids = inputs["input_ids"]
        scores = (5.0 * (ids == number) for number in (self.ids[0], self.ids[-1]))
        return SimpleNamespace(**dict(zip(("start_logits", "end_logits"), scores, strict=True)))


def test_qa_reader_leaves_every_module_in_its_mode(tokenizer: PreTrainedTokenizerBase) -> None:
    model = PointsAt(tokenizer(" needle", add_special_tokens=False)["input_ids"]).train()
    model.attention.eval()
    assert QAReader(model, tokenizer, 2048).answer(RECORD) == "needle"  # type: ignore[arg-type]
    assert model.training
    assert not model.attention.training


@pytest.mark.parametrize(
    ("length", "stride", "inputs", "answer"),
    [(2048, 128, 1, "needle"), (96, 32, 3, "needle"), (96, None, 1, None)],
    ids=str,
)
def test_qa_reader_finds_answer_in_whole_documents_and_windows(
    length: int, stride: int | None, inputs: int, answer: str | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = PointsAt(tokenizer(" needle", add_special_tokens=False)["input_ids"])
    text = QAReader(model, tokenizer, length, stride, batch_size=3).answer(RECORD)  # type: ignore[arg-type]
    assert text == answer if answer else text != "needle"
    assert max(len(batch["input_ids"]) for batch in model.seen) == inputs
    assert {*model.seen[0]} <= {"input_ids", "token_type_ids", "attention_mask"}


def test_qa_reader_answers_nothing_below_the_null_threshold(tokenizer: PreTrainedTokenizerBase) -> None:
    model = PointsAt(tokenizer(" needle", add_special_tokens=False)["input_ids"])
    reader = QAReader(model, tokenizer, 2048, null_threshold=100.0)  # type: ignore[arg-type]
    assert reader.answer(RECORD) == ""


def test_qa_reader_refuses_a_record_without_its_document(tokenizer: PreTrainedTokenizerBase) -> None:
    reader = QAReader(PointsAt([5]), tokenizer, 2048)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="must have 'question' and 'context', both texts; it has 'question', 'text'"):
        reader.answer({"question": "find", "text": CONTEXT})


NONE = (-1, -1)
OFFSETS = [NONE, (0, 2), (3, 5), (6, 8), (9, 11)]


def scores(**places: float) -> np.ndarray:
    values = np.zeros(7)
    for place, value in places.items():
        values[int(place[1:])] = value
    return values


@every_case(
    "windows, starts, ends, expected",
    [
        ([OFFSETS], [scores(_2=5)], [scores(_3=4)], ("bb cc", 9.0)),
        ([OFFSETS], [scores(_4=5, _5=99)], [scores(_0=0, _2=4, _6=99)], ("dd", 5.0)),  # no padding, no reversed pair
        ([OFFSETS], [scores(_1=5)], [scores(_4=5, _2=1)], ("aa bb", 6.0)),  # the other pair is too long
        (  # windows are compared by their margin over no answer
            [[NONE, (0, 2), (3, 5)], [NONE, (6, 8), (9, 11)]],
            [scores(_0=9, _1=10), scores(_1=6)],
            [scores(_0=9, _1=10), scores(_1=6)],
            ("cc", 12.0),
        ),
    ],
)
def test_best_span_is_the_likeliest_of_at_most_three_tokens(
    windows: Any, starts: Any, ends: Any, expected: tuple[str, float]
) -> None:
    rows = [{"example": 0, "offsets": offsets} for offsets in windows]
    (best,) = best_answers([{"context": "aa bb cc dd"}], rows, starts, ends, most_tokens=3)
    assert (best.best, best.score) == expected


def record(number: int, text: str, **more: Any) -> dict[str, Any]:
    return {
        "id": str(number),
        "answers": {"text": [text] if text else [], "answer_start": [0] if text else []},
        **more,
    }


def answer(text: str, score: float = 1.0, **more: Any) -> Answer:
    return Answer(text, text or "x", score, **more)


def squad_2(records: list[dict], answers: list[Answer]) -> float:
    """find_best_thresh of SQuAD 2's evaluation script."""
    has = [bool(one["answers"]["text"]) for one in records]
    current = best = float(sum(not one for one in has))
    for place in sorted(range(len(has)), key=lambda place: -answers[place].score):
        current += score_answer(answers[place].best, records[place]["answers"]["text"])[1] if has[place] else -1
        best = max(best, current)
    return 100 * best / len(has)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(5))
def test_best_threshold_is_that_of_the_squad_2_script(seed: int) -> None:
    choose = random.Random(seed)
    records = [record(number, choose.choice(["", "red fox"])) for number in range(30)]
    answers = [
        answer(choose.choice(["red fox", "fox", "wolf"]), choose.choice([choose.gauss(0, 1), 0.5])) for _ in records
    ]
    threshold, best = best_threshold(records, answers)
    assert best == pytest.approx(squad_2(records, answers))
    assert score_answers(records, [replace(answer, text=answer.above(threshold)) for answer in answers])[
        "f1"
    ] == pytest.approx(best)


def test_qa_scores_are_split_by_length_position_and_missing_answers() -> None:
    records = [record(0, "a fox"), record(1, "wolf"), record(2, ""), record(3, "x", gold=["bear", "Bear cub"])]
    answers = [
        answer("fox", length=100, position=5),
        answer("fox", length=5000, position=600),
        Answer("", length=100),
        answer("bear cub", length=5000, position=4900),
    ]
    result = score_answers(records, answers)
    assert (result["exact_match"], result["n"]) == (75.0, 4)
    assert {name: (part["exact_match"], part["n"]) for name, part in result["by_length"].items()} == {
        "<=512": (100, 2),
        "<=8192": (50, 2),
    }
    assert {name: part["exact_match"] for name, part in result["by_position"].items()} == {
        "<=512": 100,
        "<=1024": 0,
        "<=8192": 100,
    }
    assert (result["NoAns_exact"], result["HasAns_total"]) == (100.0, 3)


def test_write_predictions_writes_answers_and_odds(tmp_path: Path) -> None:
    records = [record(0, "fox"), record(1, "")]
    write_predictions(tmp_path, records, [Answer("fox", "fox", 2.0), Answer("", "wolf", -3.0)])
    read = {path.name: read_json(path) for path in tmp_path.iterdir()}
    assert read["predictions.json"] == {"0": "fox", "1": ""}
    assert read["null_odds.json"] == {"0": -2.0, "1": 3.0}


def test_question_over_several_documents_has_the_answer_of_the_best(tmp_path: Path) -> None:
    """TriviaQA: each document is read alone; the question counts once, in TriviaQA's normalisation."""
    gold = ["st petersburg", "leningrad"]
    records = [
        record(3, "St Petersburg", document="Neva.txt", gold=gold),
        record(3, "", document="26/26_3.txt", gold=gold),
        record(4, "Fox", document="Fox.txt", gold=["red_fox"]),
        record(5, "owl", document="Owl.txt", gold=["owl"]),
    ]
    answers = [
        answer("Moscow", 1.0, length=400, position=7),
        answer("the ‘St.Petersburg’", 3.0, length=300, position=-1),
        answer("A red-fox", 0.5, length=700, position=20),
        answer("bird", 0.5, length=700, position=600),
    ]
    result = score_answers(records, answers)
    assert (result["exact_match"], result["n"]) == (pytest.approx(200 / 3), 3)
    assert {name: part["n"] for name, part in result["by_length"].items()} == {"<=1024": 3}
    assert {name: part["n"] for name, part in result["by_position"].items()} == {"<=512": 2, "<=1024": 1}
    _, (first, *_) = by_question(records, answers)
    assert (first.score, first.length, first.position) == (3.0, 700, 7)
    write_predictions(tmp_path, records, answers)
    read = {path.name: read_json(path) for path in tmp_path.iterdir()}
    assert read["predictions.json"] == {"3": "the ‘St.Petersburg’", "4": "A red-fox", "5": "bird"}


@every_case(
    ("prediction", "aliases", "expected"),
    [
        ("The St.Petersburg", ["st petersburg"], (1.0, 1.0)),  # punctuation separates; SQuAD's script would join
        ("red_fox", ["Red Fox"], (1.0, 1.0)),
        ("rock ‘n’ roll", ["rock n roll"], (1.0, 1.0)),
        ("a red fox runs", ["red fox", "wolf"], (0.0, 0.8)),
        ("wolf", ["red fox", "a wolf"], (1.0, 1.0)),
        ("", ["fox"], (0.0, 0.0)),
        ("", [], (1.0, 1.0)),
        ("fox", [], (0.0, 0.0)),
    ],
)
def test_score_alias_is_the_metric_of_trivia_qa(
    prediction: str, aliases: list[str], expected: tuple[float, float]
) -> None:
    """Worked by hand from triviaqa_evaluation.py."""
    assert score_alias(prediction, aliases) == pytest.approx(expected)
