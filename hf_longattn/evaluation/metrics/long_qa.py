"""SQuAD's exact match and F1, overall and by document length, with counts and standard errors."""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from hf_longattn.data.answers import ARTICLES

BUCKETS = (512, 1024, 2048, 4096, 8192)
"""Upper bounds of the length buckets, in tokens of the document."""

_PUNCTUATION = frozenset(string.punctuation)
_DESCRIPTION = """
Exact match and token F1 of extractive question answering (SQuAD's definitions), in per cent, over all questions and by
the length of the document in tokens.
"""
_CITATION = """
@inproceedings{rajpurkar2016squad, title={{SQuAD}: 100,000+ Questions for Machine Comprehension of Text},
  author={Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy}, booktitle={EMNLP}, year={2016}}
"""
_KWARGS = """
predictions: list of {id, prediction_text}; an empty text says "no answer".
references: list of {id, answers: {text, answer_start}, length}; length = tokens of the document.
buckets: upper bounds of the length buckets.
Returns a dict: exact_match, f1, exact_match_se, f1_se, n, and buckets: {"<=512": the same six, ...} without empty ones.
"""


class LongQA(evaluate.Metric):
    """``evaluate.Metric`` with predictions {id, prediction_text} and references {id, answers, length}."""

    def _info(self) -> evaluate.MetricInfo:
        answers = {"text": datasets.List(datasets.Value("string")), "answer_start": datasets.List(datasets.Value("int32"))}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS,
            features=datasets.Features(
                {
                    "predictions": {"id": datasets.Value("string"), "prediction_text": datasets.Value("string")},
                    "references": {"id": datasets.Value("string"), "answers": answers, "length": datasets.Value("int64")},
                }
            ),
        )

    def _compute(
        self, predictions: list[dict[str, Any]], references: list[dict[str, Any]], buckets: Sequence[int] = BUCKETS
    ) -> dict[str, Any]:
        texts = {prediction["id"]: prediction["prediction_text"] for prediction in predictions}
        scored = []
        for reference in references:
            if reference["id"] not in texts:
                raise ValueError(f"no prediction for question {reference['id']!r}; every reference needs one")
            exact, f1 = score_answer(texts[reference["id"]], reference["answers"]["text"])
            scored.append((reference["length"], exact, f1))
        result: dict[str, Any] = summarise([(exact, f1) for _, exact, f1 in scored])
        lows = (0, *buckets)
        names = [f"<={high}" for high in buckets] + [f">{buckets[-1]}"]
        result["buckets"] = {}
        for name, low, high in zip(names, lows, (*buckets, math.inf), strict=True):
            inside = [(exact, f1) for length, exact, f1 in scored if low < length <= high]
            if inside:
                result["buckets"][name] = summarise(inside)
        return result


def score_answer(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """Return exact match and F1 (0 … 1) against the best of ``answers``; without answers, only '' is right."""
    if not answers:
        right = float(not normalise(prediction))
        return right, right
    return (
        max(float(normalise(prediction) == normalise(answer)) for answer in answers),
        max(token_f1(normalise(prediction).split(), normalise(answer).split()) for answer in answers),
    )


def normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    plain = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", plain).split())


def summarise(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return means and standard errors of (exact, f1) pairs, in per cent, and their number."""
    result: dict[str, float] = {}
    for name, values in (("exact_match", [s[0] for s in scores]), ("f1", [s[1] for s in scores])):
        mean, error = mean_and_error(values)
        result[name], result[f"{name}_se"] = 100 * mean, 100 * error
    result["n"] = len(scores)
    return result


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; the error is 0 of fewer than two values, which do not have one."""
    count = len(values)
    mean = sum(values) / count if count else 0.0
    spread = sum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(spread / (count - 1) / count) if count > 1 else 0.0


def token_f1(prediction: list[str], answer: list[str]) -> float:
    """F1 (0 … 1) of the words that two texts share."""
    common = sum((Counter(prediction) & Counter(answer)).values())
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(answer)
    return 2 * precision * recall / (precision + recall)
