"""Scores of answers, and files of predictions in SQuAD's and TriviaQA's formats. The scores are exact match and F1 by document length and
by the answer's position, with SQuAD 2's threshold and TriviaQA's several documents."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_longattn.evaluation import load_metric
from hf_longattn.evaluation.qa_reader import Answer

PREDICTIONS, N_BEST, NULL_ODDS = "predictions.json", "nbest_predictions.json", "null_odds.json"
BY_DOCUMENT = "triviaqa_predictions.json"


def score_answers(examples: Sequence[Mapping[str, Any]], answers: Sequence[Answer], threshold: float | None = None) -> dict[str, Any]:
    """Scores of ``answers`` to ``examples`` in per cent.

    Args:
        examples: of ``load_qa``; ``gold`` (or else ``answers``) are the right texts, none for a question without an answer.
        answers: one per example, as a :class:`QAReader` returns them.
        threshold: answer "" where the best span's score above "no answer" is below it; ``None`` = the answers as they are.

    Returns:
        exact_match, f1 with standard errors, n; ``by_length`` and ``by_position`` (of the answer), both in tokens; with questions
        without an answer SQuAD 2's HasAns_*, NoAns_*, and best_f1 at best_f1_threshold.
        A question with several documents (TriviaQA) counts once (:func:`by_question`). document_* count every document, as in TriviaQA's
        Web part.
    """
    documents, document_answers = examples, answers
    examples, answers = by_question(examples, answers)
    texts = _texts(answers, threshold)
    result = _scores(examples, texts, [answer.length for answer in answers])
    result["by_length"] = result.pop("buckets")
    result["by_position"] = _scores(examples, texts, [answer.position for answer in answers])["buckets"]
    parts: dict[str, list[int]] = {}
    without = [number for number, example in enumerate(examples) if not gold_of(example)]
    if without and len(without) < len(examples):
        parts = {"HasAns": sorted(set(range(len(examples))) - set(without)), "NoAns": without}
        result["best_f1_threshold"], result["best_f1"] = best_threshold(examples, answers)
    if any(example.get("document") for example in examples):
        result |= _named("document", _scores(documents, _texts(document_answers, threshold)))
    for name, numbers in parts.items():
        if numbers:
            result |= _named(name, _scores([examples[number] for number in numbers], [texts[number] for number in numbers]))
    return result


def _scores(examples: Sequence[Mapping[str, Any]], texts: Sequence[str], lengths: Sequence[int] | None = None) -> dict[str, Any]:
    """Results of the metric ``long_qa``, with buckets by ``lengths``."""
    predictions = [{"id": str(number), "prediction_text": text} for number, text in enumerate(texts)]
    references = [
        {"id": str(number), "answers": {"text": gold_of(example), "answer_start": []}, "length": length}
        for number, (example, length) in enumerate(zip(examples, lengths or [-1] * len(examples), strict=True))
    ]
    scripts = [script_of(example) for example in examples]
    return load_metric("long_qa").compute(predictions=predictions, references=references, scripts=scripts)


def _named(name: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of a part of the questions under the names of SQuAD 2's script."""
    return {f"{name}_exact": scores["exact_match"], f"{name}_f1": scores["f1"], f"{name}_total": scores["n"]}


def by_question(examples: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> tuple[Sequence[Mapping[str, Any]], Sequence[Answer]]:
    """Merge the documents of a question (TriviaQA) into one example with the best-scored answer, as Joshi et al. (2017, section 5.2) choose
    it. It has the candidates and the total length of all documents, and the position of the first right answer. All other examples stay as
    they are.
    """
    groups: dict[Any, list[int]] = {}
    for place, example in enumerate(examples):
        groups.setdefault(str(example["id"]) if example.get("document") else place, []).append(place)
    if len(groups) == len(examples):
        return examples, answers
    merged = []
    for places in groups.values():
        group = [answers[place] for place in places]
        best = max(group, key=lambda answer: answer.score)
        spans = sorted((span for answer in group for span in answer.spans), key=lambda span: -span.score)[: max(len(best.spans), 1)]
        position = next((answer.position for answer in group if answer.position >= 0), -1)
        merged.append(dataclasses.replace(best, spans=spans, length=sum(answer.length for answer in group), position=position))
    return [examples[places[0]] for places in groups.values()], merged


def _texts(answers: Sequence[Answer], threshold: float | None) -> list[str]:
    return [answer.text if threshold is None else answer.above(threshold) for answer in answers]


def script_of(example: Mapping[str, Any]) -> str:
    """The official script of an example's data, by its name in :data:`~hf_longattn.evaluation.metrics.long_qa.SCRIPTS`."""
    return "trivia" if example.get("document") else "squad"


def gold_of(example: Mapping[str, Any]) -> list[str]:
    """The correct texts."""
    return list(example.get("gold") or example["answers"]["text"])


def best_threshold(examples: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> tuple[float, float]:
    """The threshold with the highest F1, and that F1 in per cent. As in SQuAD 2's evaluation script, spans become "no answer" in the order
    of their scores."""
    from hf_longattn.evaluation.metrics.long_qa import SCRIPTS  # here, since evaluate takes long to import

    ranked = []
    for example, answer in zip(examples, answers, strict=True):
        ranked.append((answer.score, SCRIPTS[script_of(example)](answer.best, gold_of(example))[1], float(not gold_of(example))))
    ranked.sort(key=lambda row: row[0])
    current = best = sum(span for _, span, _ in ranked)
    threshold = -math.inf if not ranked else ranked[0][0] - 1.0
    for place, (score, span, nothing) in enumerate(ranked):  # this span and all before it become "no answer"
        current += nothing - span
        following = ranked[place + 1][0] if place + 1 < len(ranked) else score + 2.0
        if current > best and following > score:
            best, threshold = current, (score + following) / 2
    return threshold, 100 * best / max(1, len(ranked))


def write_predictions(folder: Path, examples: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> None:
    """Write ``predictions.json`` and ``null_odds.json`` for SQuAD's scripts, and ``nbest_predictions.json``. TriviaQA also gets
    ``triviaqa_predictions.json``, with keys QUESTION (for Wikipedia's script) and QUESTION--DOCUMENT (for the Web's)."""
    each = {
        f"{example['id']}--{example['document']}": answer
        for example, answer in zip(examples, answers, strict=True)
        if example.get("document")
    }
    examples, answers = by_question(examples, answers)
    named = {str(example["id"]): answer for example, answer in zip(examples, answers, strict=True)}
    files: dict[str, Any] = {
        PREDICTIONS: {name: answer.text for name, answer in named.items()},
        NULL_ODDS: {name: -answer.score if answer.spans else 0.0 for name, answer in named.items()},
        N_BEST: {name: answer.n_best() for name, answer in named.items()},
    }
    if each:
        files[BY_DOCUMENT] = {**files[PREDICTIONS], **{name: answer.text for name, answer in each.items()}}
    for name, contents in files.items():
        (folder / name).write_text(json.dumps(contents, ensure_ascii=False, indent=1), encoding="utf-8")
