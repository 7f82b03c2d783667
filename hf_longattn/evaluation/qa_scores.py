"""Scores of answers: exact match and F1 by document length and by the answer's position, SQuAD 2's threshold, HotpotQA's facts, TriviaQA's
questions over several documents; and files of predictions in SQuAD's, HotpotQA's and TriviaQA's formats."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_longattn.evaluation.metrics import trivia
from hf_longattn.evaluation.metrics.hotpot import hotpot_scores
from hf_longattn.evaluation.metrics.long_qa import BUCKETS, score_answer, summarise
from hf_longattn.evaluation.qa_reader import Answer

PREDICTIONS, N_BEST, NULL_ODDS = "predictions.json", "nbest_predictions.json", "null_odds.json"
FACTS, BY_DOCUMENT = "hotpot_predictions.json", "triviaqa_predictions.json"


def score_answers(records: Sequence[Mapping[str, Any]], answers: Sequence[Answer], threshold: float | None = None) -> dict[str, Any]:
    """Scores of ``answers`` to ``records`` in per cent.

    Args:
        records: of ``load_qa``; ``gold`` (or else ``answers``) are the right texts, none for a question without an answer.
        answers: one per record, as a :class:`QAReader` returns them.
        threshold: answer "" where the best span's score above "no answer" is below it; ``None`` = the answers as they are.

    Returns:
        exact_match, f1 with standard errors, n; ``by_length`` and ``by_position`` (of the answer), both in tokens; with questions
        without an answer SQuAD 2's HasAns_*, NoAns_*, and best_f1 at best_f1_threshold; with sentences HotpotQA's sp_* and joint_*.
        A question with several documents (TriviaQA) counts once, see :func:`by_question`; document_* are the scores of every document
        alone, as on TriviaQA's Web part, and verified_* those of the questions whose answers people checked.
    """
    given, (records, answers) = (records, answers), by_question(records, answers)
    scores = _scored(records, answers, threshold)
    golds = [gold_of(record) for record in records]
    result: dict[str, Any] = dict(summarise(scores))
    result["by_length"] = _buckets(scores, [answer.length for answer in answers])
    result["by_position"] = _buckets(scores, [answer.position for answer in answers])
    parts: dict[str, list[tuple[float, float]]] = {}
    without = [place for place, gold in enumerate(golds) if not gold]
    if without and len(without) < len(golds):
        parts = {"HasAns": [scores[place] for place, gold in enumerate(golds) if gold], "NoAns": [scores[place] for place in without]}
        result["best_f1_threshold"], result["best_f1"] = best_threshold(records, answers)
    if any(record.get("document") for record in records):
        parts["document"] = _scored(*given, threshold)
        parts["verified"] = [score for score, record in zip(scores, records, strict=True) if record.get("verified")]
    for name, some in parts.items():
        part = summarise(some)
        if some:
            result |= {f"{name}_exact": part["exact_match"], f"{name}_f1": part["f1"], f"{name}_total": part["n"]}
    if any(record.get("sentences") for record in records):
        texts = _texts(answers, threshold)
        facts = [(facts_of(record, answer.supporting), facts_of(record)) for record, answer in zip(records, answers, strict=True)]
        found = hotpot_scores([(text, gold[0] if gold else "") for text, gold in zip(texts, golds, strict=True)], facts)
        result |= {name: value for name, value in found.items() if name.startswith(("sp_", "joint_"))}
    return result


def by_question(records: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> tuple[Sequence[Mapping[str, Any]], Sequence[Answer]]:
    """One record and one answer for each question with several documents (TriviaQA): the answer of the document with the best score, as
    Joshi et al. (2017, section 5.2) choose it. Its candidates are those of all documents, its length is theirs together, and its position
    is that of the first right answer in the first document that has one. All other records stay as they are.
    """
    groups: dict[Any, list[int]] = {}
    for place, record in enumerate(records):
        groups.setdefault(str(record["id"]) if record.get("document") else place, []).append(place)
    if len(groups) == len(records):
        return records, answers
    merged = []
    for places in groups.values():
        some = [answers[place] for place in places]
        best = max(some, key=lambda answer: answer.score)
        spans = sorted((span for answer in some for span in answer.spans), key=lambda span: -span.score)[: max(len(best.spans), 1)]
        losses = tuple(loss for answer in some for loss in answer.losses)
        position = next((answer.position for answer in some if answer.position >= 0), -1)
        merged.append(
            dataclasses.replace(best, spans=spans, losses=losses, length=sum(answer.length for answer in some), position=position)
        )
    return [records[places[0]] for places in groups.values()], merged


def _texts(answers: Sequence[Answer], threshold: float | None) -> list[str]:
    return [answer.text if threshold is None else answer.above(threshold) for answer in answers]


def _scored(records: Sequence[Mapping[str, Any]], answers: Sequence[Answer], threshold: float | None) -> list[tuple[float, float]]:
    return [_score(record, text) for record, text in zip(records, _texts(answers, threshold), strict=True)]


def _score(record: Mapping[str, Any], text: str) -> tuple[float, float]:
    """Exact match and F1 as the data's own script computes them."""
    return (trivia.score_answer if record.get("document") else score_answer)(text, gold_of(record))


def gold_of(record: Mapping[str, Any]) -> list[str]:
    """The texts that are right."""
    return list(record.get("gold") or record["answers"]["text"])


def facts_of(record: Mapping[str, Any], numbers: Sequence[int] | None = None) -> list[tuple[str, int]]:
    """Title and number of the sentences ``numbers``; without, of those that support the right answer."""
    sentences = record.get("sentences") or []
    chosen = [one for one in sentences if one["supports"]] if numbers is None else [sentences[number] for number in numbers]
    return [(one["title"], one["index"]) for one in chosen]


def best_threshold(records: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> tuple[float, float]:
    """The threshold with the highest F1, and that F1 in per cent, as SQuAD 2's evaluation script finds it: spans are given up in the order
    of their score above "no answer"."""
    ranked = []
    for record, answer in zip(records, answers, strict=True):
        ranked.append((answer.score, _score(record, answer.best)[1], float(not gold_of(record))))
    ranked.sort(key=lambda one: one[0])
    current = best = sum(span for _, span, _ in ranked)
    threshold = -math.inf if not ranked else ranked[0][0] - 1.0
    for place, (score, span, nothing) in enumerate(ranked):  # this one and all before it are given up
        current += nothing - span
        following = ranked[place + 1][0] if place + 1 < len(ranked) else score + 2.0
        if current > best and following > score:
            best, threshold = current, (score + following) / 2
    return threshold, 100 * best / max(1, len(ranked))


def write_predictions(folder: Path, records: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> None:
    """Write ``predictions.json`` and ``null_odds.json`` (as SQuAD's scripts read them), ``nbest_predictions.json``, for HotpotQA
    ``hotpot_predictions.json`` {answer, sp}, and for TriviaQA ``triviaqa_predictions.json``, whose keys are questions (as its script wants
    them for Wikipedia) and QUESTION--DOCUMENT (for the Web)."""
    each = {
        f"{record['id']}--{record['document']}": answer for record, answer in zip(records, answers, strict=True) if record.get("document")
    }
    records, answers = by_question(records, answers)
    named = {str(record["id"]): answer for record, answer in zip(records, answers, strict=True)}
    files: dict[str, Any] = {
        PREDICTIONS: {name: answer.text for name, answer in named.items()},
        NULL_ODDS: {name: -answer.score if answer.spans else 0.0 for name, answer in named.items()},
        N_BEST: {name: answer.n_best() for name, answer in named.items()},
    }
    if any(record.get("sentences") for record in records):
        pairs = {str(record["id"]): facts_of(record, named[str(record["id"])].supporting) for record in records}
        files[FACTS] = {"answer": files[PREDICTIONS], "sp": pairs}
    if each:
        files[BY_DOCUMENT] = {**files[PREDICTIONS], **{name: answer.text for name, answer in each.items()}}
    for name, contents in files.items():
        (folder / name).write_text(json.dumps(contents, ensure_ascii=False, indent=1), encoding="utf-8")


def _buckets(scores: Sequence[tuple[float, float]], places: Sequence[int]) -> dict[str, Any]:
    found = {}
    names = [f"<={high}" for high in BUCKETS] + [f">{BUCKETS[-1]}"]
    for name, low, high in zip(names, (-1, *BUCKETS), (*BUCKETS, math.inf), strict=True):
        inside = [score for score, place in zip(scores, places, strict=True) if low < place <= high]
        if inside:
            found[name] = summarise(inside)
    return found
