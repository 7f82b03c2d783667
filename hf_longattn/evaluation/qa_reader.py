"""Answers to questions about long documents, their scores, and files of predictions.

A document is read whole, cut, or in windows, and the answer is the best span in all of its windows. Scores are exact
match and F1, also by document length and by the position of the answer. They follow SQuAD 2, with a threshold for "no
answer", and TriviaQA, whose questions have several documents.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.qa_features import Offset, QACollator, qa_inputs
from ..data.tokenization import longest_input
from ..errors import OptionError
from ..files import write_json
from ..modeling.inference import evaluating
from ..modeling.unpadding import unpadded
from .metrics.long_qa import score_alias, score_answer, summarise
from .summaries import by_bucket

EXAMPLES_AT_ONCE = 256
"""Number of examples that are read together. Their inputs are sorted by length."""
CANDIDATES = 20
"""Maximum number of starts, and of ends, that are paired in a window. SQuAD's scripts use 20."""


class QAReader:
    """Answers questions with the best span of a document.

    Args:
        model: a question-answering model.
        tokenizer: its tokenizer.
        length: maximum number of tokens of an input; ``None`` = the model's maximum.
        stride: tokens that two windows of a longer document share, a quarter of ``length`` at most; ``None`` = read
            only the first window.
        batch_size: windows per forward pass.
        max_answer_tokens: maximum length of an answer.
        null_threshold: the answer is "" if the score of the best span (:attr:`Answer.score`) is below this. Default:
            ``no_answer_threshold`` of the config, which a training sets. If the config has none, every question gets
            an answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        length: int | None = None,
        stride: int | None = 128,
        *,
        batch_size: int = 8,
        max_answer_tokens: int = 30,
        null_threshold: float | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.length = length or longest_input(model, tokenizer)
        self.stride = None if stride is None else min(stride, self.length // 4)
        self.batch_size, self.max_answer_tokens = batch_size, max_answer_tokens
        if null_threshold is None:
            null_threshold = getattr(model.config, "no_answer_threshold", None)
        self.null_threshold = null_threshold

    def answer(self, example: Mapping[str, Any]) -> str:
        """The text of the answer; "" = no answer. ``example`` has ``question`` and ``context``."""
        return self.read([example])[0].text

    def read(self, examples: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """The answer to each example, in order. Inputs of similar length share a forward pass.

        Args:
            examples: dictionaries, or a dataset, with ``question`` and ``context``, and ``answers`` if they are known.

        Raises:
            OptionError: an example has no ``question`` or no ``context``.
            InputError: a question leaves no room for the document.
        """
        answers: list[Answer] = []
        for first in range(0, len(examples), EXAMPLES_AT_ONCE):
            numbers = range(first, min(first + EXAMPLES_AT_ONCE, len(examples)))
            answers += self._read([examples[number] for number in numbers])
        return answers

    def _read(self, examples: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """:meth:`read` for at most :data:`EXAMPLES_AT_ONCE` examples."""
        for example in examples:
            if not all(isinstance(example.get(name), str) for name in ("question", "context")):
                known = ", ".join(repr(name) for name, value in example.items() if value is not None)
                raise OptionError(
                    f"An example must have 'question' and 'context', both texts; it has {known or 'nothing'}."
                )
        columns = {name: [example[name] for example in examples] for name in ("question", "context")}
        columns["answers"] = [example.get("answers") or {"text": [], "answer_start": []} for example in examples]
        windows = qa_inputs(columns, range(len(examples)), self.tokenizer, self.length, self.stride)
        rows = [dict(zip(windows, values, strict=True)) for values in zip(*windows.values(), strict=True)]

        # Read the longest inputs first: rows of a batch then have similar lengths, and too little memory shows at
        # once.
        longest_first = sorted(rows, key=lambda row: -row["length"])
        collator = QACollator(self.tokenizer)
        with unpadded(self.model), evaluating(self.model), torch.inference_mode():
            for first in range(0, len(rows), self.batch_size):
                batch = longest_first[first : first + self.batch_size]
                inputs = collator(batch)
                inputs.pop("labels")
                outputs = self.model(**{name: value.to(self.model.device) for name, value in inputs.items()})
                starts = outputs.start_logits.float().cpu().numpy()
                ends = outputs.end_logits.float().cpu().numpy()
                for row, row_starts, row_ends in zip(batch, starts, ends, strict=True):
                    row |= {"start_scores": row_starts, "end_scores": row_ends}
        answers = best_answers(
            examples,
            rows,
            [row["start_scores"] for row in rows],
            [row["end_scores"] for row in rows],
            most_tokens=self.max_answer_tokens,
        )
        return [replace(answer, text=answer.above(self.null_threshold)) for answer in answers]


@dataclass(frozen=True)
class Answer:
    """A reader's answer from one document.

    Attributes:
        text: the answer; "" = no answer.
        best: the best span of the document, even if "no answer" has a higher score; "" if there is no span.
        score: sum of the logits of start and end of the best span, minus the same sum for the first token ("no
            answer") of the same window. This makes windows comparable. It is the negative of SQuAD 2's null odds.
        length: number of tokens of the document.
        position: number of tokens before the first correct answer; -1 if no correct answer is known.
    """

    text: str
    best: str = ""
    score: float = -math.inf
    length: int = 0
    position: int = -1

    def above(self, threshold: float | None) -> str:
        """The best span, or "" if its score is below ``threshold``. ``None`` = no threshold."""
        if threshold is not None and self.score < threshold:
            return ""
        return self.best


def best_answers(
    examples: Iterable[Mapping[str, Any]],
    rows: Iterable[Mapping[str, Any]],
    starts: Iterable[np.ndarray],
    ends: Iterable[np.ndarray],
    *,
    most_tokens: int = 30,
) -> list[Answer]:
    """The best span in all windows of each example, even if "no answer" has a higher score.

    Args:
        examples: rows with ``context``, and with ``answers`` if they are known.
        rows: all windows of the examples, in the order of the examples; see
            :func:`~hf_longattn.data.qa_features.qa_inputs`.
        starts, ends: for each window of L tokens, the logits of its tokens as starts and as ends, (L,) or longer. The
            rest is padding and ignored.
        most_tokens: maximum length of an answer.
    """
    windows = groupby(zip(rows, starts, ends, strict=True), key=lambda window: window[0]["example"])
    answers = []
    for example, (_, group) in zip(examples, windows, strict=True):
        text, best = "", -math.inf
        tokens = set[Offset]()  # of the document; windows share some
        for row, start_scores, end_scores in group:
            offsets = [tuple(offset) for offset in row["offsets"]]
            tokens.update(offset for offset in offsets if offset[0] >= 0)
            inside = np.array([0 <= start < end for start, end in offsets])  # empty tokens are not answers
            null = float(start_scores[0] + end_scores[0])
            start_scores = np.where(inside, start_scores[: len(offsets)], -np.inf)
            end_scores = np.where(inside, end_scores[: len(offsets)], -np.inf)

            # Scores of pairs, (starts, ends); -inf for an end before the start, or too far after it
            top_starts, top_ends = _largest(start_scores, CANDIDATES), _largest(end_scores, CANDIDATES)
            scores = start_scores[top_starts][:, None] + end_scores[top_ends][None, :] - null
            distance = top_ends[None, :] - top_starts[:, None]
            scores = np.where((distance >= 0) & (distance < most_tokens), scores, -np.inf)
            pair = _largest(scores.ravel(), CANDIDATES)[0]
            if scores.flat[pair] > best:
                best = float(scores.flat[pair])
                first, last = top_starts[pair // len(top_ends)], top_ends[pair % len(top_ends)]
                text = example["context"][offsets[first][0] : offsets[last][1]].strip()
        position = -1
        correct_starts = (example.get("answers") or {}).get("answer_start")
        if correct_starts:
            position = bisect_right(sorted(tokens), (min(correct_starts), np.inf)) - 1
        answers.append(Answer(text, text, best, len(tokens), position))
    return answers


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The indices of the ``count`` largest values, the largest value first."""
    count = min(count, len(values))
    chosen = np.argpartition(-values, count - 1)[:count]
    return chosen[np.argsort(-values[chosen], kind="stable")]


def score_answers(examples: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> dict[str, Any]:
    """Scores of ``answers`` to ``examples`` in per cent.

    A question with several documents (TriviaQA) counts once, see :func:`by_question`.

    Args:
        examples: rows of ``load_qa``. The correct texts are in ``gold``, or else in ``answers``. A question without an
            answer has none.
        answers: an answer to each example, from a :class:`QAReader`.

    Returns:
        exact_match and f1 with standard errors, n, and the same scores ``by_length`` of the document and
        ``by_position`` of the answer, both in tokens. If some questions have an answer and others have none, the
        scores of both kinds (HasAns_*, NoAns_*), best_f1 and best_f1_threshold are added, as in SQuAD 2's script.
    """
    examples, answers = by_question(examples, answers)
    scores = [_score(example, answer.text) for example, answer in zip(examples, answers, strict=True)]
    result: dict[str, Any] = {
        **summarise(scores),
        "by_length": by_bucket(scores, [answer.length for answer in answers], summarise),
        "by_position": by_bucket(scores, [answer.position for answer in answers], summarise),
    }

    # Questions with and without an answer
    kinds: dict[str, list[tuple[float, float]]] = {"HasAns": [], "NoAns": []}
    for example, score in zip(examples, scores, strict=True):
        kinds["HasAns" if gold_of(example) else "NoAns"].append(score)
    if all(kinds.values()):
        result["best_f1_threshold"], result["best_f1"] = best_threshold(examples, answers)
        for name, kind_scores in kinds.items():
            means = summarise(kind_scores)
            result[f"{name}_exact"] = means["exact_match"]
            result[f"{name}_f1"] = means["f1"]
            result[f"{name}_total"] = means["n"]
    return result


def by_question(
    examples: Sequence[Mapping[str, Any]], answers: Sequence[Answer]
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Answer]]:
    """Examples and answers in which a question with several documents (TriviaQA) has one example and one answer.

    The answer is the one with the highest score, as in Joshi et al. (2017, section 5.2). Its length is the sum over
    all documents, and its position is from the first document with a correct answer. Questions with one document do
    not change.
    """
    groups: dict[Any, list[int]] = {}
    for number, example in enumerate(examples):
        question = str(example["id"]) if example.get("document") else number
        groups.setdefault(question, []).append(number)
    if len(groups) == len(examples):
        return examples, answers
    merged = []
    for numbers in groups.values():
        group = [answers[number] for number in numbers]
        best = max(group, key=lambda answer: answer.score)
        positions = [answer.position for answer in group if answer.position >= 0] or [-1]
        merged.append(replace(best, length=sum(answer.length for answer in group), position=positions[0]))
    return [examples[numbers[0]] for numbers in groups.values()], merged


def gold_of(example: Mapping[str, Any]) -> list[str]:
    """The correct texts of an example."""
    return list(example.get("gold") or example["answers"]["text"])


def _score(example: Mapping[str, Any], text: str) -> tuple[float, float]:
    """Exact match and F1 (0 … 1) of a text, as in TriviaQA if the question has several documents, else as in SQuAD."""
    if example.get("document"):
        return score_alias(text, gold_of(example))
    return score_answer(text, gold_of(example))


def best_threshold(examples: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> tuple[float, float]:
    """The threshold of "no answer" with the highest F1, and this F1 in per cent.

    As in SQuAD 2's script, all thresholds between two scores are tried, from the lowest score to the highest.
    """
    # for each question: score of the span, F1 of the span, F1 of "no answer"
    ranked = []
    for example, answer in zip(examples, answers, strict=True):
        _, span_f1 = _score(example, answer.best)
        ranked.append((answer.score, span_f1, float(not gold_of(example))))
    ranked.sort(key=lambda row: row[0])

    total = best = sum(span_f1 for _, span_f1, _ in ranked)
    threshold = ranked[0][0] - 1.0  # below all scores: every question gets its span
    scores = [score for score, _, _ in ranked]
    next_scores = [*scores[1:], scores[-1] + 2.0]
    for (score, span_f1, null_f1), next_score in zip(ranked, next_scores, strict=True):
        total += null_f1 - span_f1  # a threshold above this score replaces its span by "no answer"
        if total > best and next_score > score:
            best, threshold = total, (score + next_score) / 2
    return threshold, 100 * best / len(ranked)


def write_predictions(folder: Path, examples: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> None:
    """Write the files of SQuAD's scripts: ``predictions.json`` (the answers) and ``null_odds.json`` (minus scores).

    Both have the ids of the questions as keys.
    """
    examples, answers = by_question(examples, answers)
    texts, odds = {}, {}
    for example, answer in zip(examples, answers, strict=True):
        question = str(example["id"])
        texts[question] = answer.text
        odds[question] = -answer.score if math.isfinite(answer.score) else 0.0
    write_json(folder / "predictions.json", texts)
    write_json(folder / "null_odds.json", odds)
