"""Answers to questions about long documents, their scores, and files of predictions.

Documents are read whole, cut or in windows; the best span of all inputs wins. Scores are exact match and F1 by
document length and by the answer's position, with SQuAD 2's threshold and TriviaQA's several documents.
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
"""Examples whose inputs are sorted by length together."""
CANDIDATES = 20
"""Maximum number of starts, and of ends, that are paired in a window. SQuAD's scripts use 20."""


class QAReader:
    """Answers questions with the best span of a document.

    Args:
        model: a question-answering model.
        tokenizer: its tokenizer.
        length: maximum number of tokens of an input; ``None`` = the model's maximum.
        stride: tokens shared by the windows of a longer document, a quarter of ``length`` at most; ``None`` = the rest
            is cut off.
        batch_size: windows per forward pass.
        max_answer_tokens: longest answer.
        null_threshold: answer "" if the best span's margin over "no answer" is below this. ``None`` =
            ``no_answer_threshold`` of the config, which training sets; if it is not set, always answer.
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
        """Return the answer's text, "" for none."""
        return self.read([example])[0].text

    def read(self, examples: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Answers in the order of ``examples``. Inputs of similar length share a forward pass.

        Raises:
            OptionError: an example has no ``question`` or no ``context``.
            InputError: a question leaves no room for the document.
        """
        answers: list[Answer] = []
        for first in range(0, len(examples), EXAMPLES_AT_ONCE):
            answers += self._read(
                [examples[number] for number in range(first, min(first + EXAMPLES_AT_ONCE, len(examples)))]
            )
        return answers

    def _read(self, examples: Sequence[Mapping[str, Any]]) -> list[Answer]:
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

        # The longest inputs first: rows of a batch then have similar lengths, and too little memory shows at once.
        longest_first, device = sorted(rows, key=lambda row: -row["length"]), self.model.device
        with unpadded(self.model), evaluating(self.model), torch.inference_mode():
            for first in range(0, len(rows), self.batch_size):
                batch = longest_first[first : first + self.batch_size]
                inputs = {
                    name: value.to(device)
                    for name, value in QACollator(self.tokenizer)(batch).items()
                    if name != "labels"
                }
                outputs = self.model(**inputs)
                starts, ends = (scores.float().cpu().numpy() for scores in (outputs.start_logits, outputs.end_logits))
                for row, *scores in zip(batch, starts, ends, strict=True):
                    row["scores"] = scores
        answers = best_answers(
            examples, rows, *zip(*(row["scores"] for row in rows), strict=True), most_tokens=self.max_answer_tokens
        )
        return [replace(answer, text=answer.above(self.null_threshold)) for answer in answers]


@dataclass(frozen=True)
class Answer:
    """A reader's answer from one document.

    Attributes:
        text: the answer, "" for none.
        best: the best span of the document, even if "no answer" scores higher; "" without a span.
        score: start plus end score of this span, minus the same sum for "no answer" (the first token) in the same
            input, so windows are comparable. It is the negative of SQuAD 2's null score difference.
        length: tokens of the document.
        position: number of tokens before the first correct answer; -1 without one.
    """

    text: str
    best: str = ""
    score: float = -math.inf
    length: int = 0
    position: int = -1

    def above(self, threshold: float | None) -> str:
        """The best answer, or "" if its score is below ``threshold``; ``None`` = always answer."""
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
    """The best span of all windows of each example, even if "no answer" scores higher.

    Args:
        examples: rows with ``context``, and with ``answers`` if they are known.
        rows: all windows of the examples, in their order; see :func:`~hf_longattn.data.qa_features.qa_inputs`.
        starts, ends: per window, the logits (≥ L,); padding after L is ignored.
        most_tokens: maximum length of an answer.
    """
    windows = groupby(zip(rows, starts, ends, strict=True), key=lambda window: window[0]["example"])
    answers = []
    for example, (_, group) in zip(examples, windows, strict=True):
        text, best, tokens = "", -math.inf, set[Offset]()
        for row, start_scores, end_scores in group:
            offsets = [tuple(offset) for offset in row["offsets"]]
            tokens.update(offset for offset in offsets if offset[0] >= 0)
            inside = np.array([0 <= start < end for start, end in offsets])  # empty tokens are not answers
            null = float(start_scores[0] + end_scores[0])
            start_scores = np.where(inside, start_scores[: len(offsets)], -np.inf)
            end_scores = np.where(inside, end_scores[: len(offsets)], -np.inf)
            top_starts, top_ends = _largest(start_scores, CANDIDATES), _largest(end_scores, CANDIDATES)
            scores = start_scores[top_starts][:, None] + end_scores[top_ends][None, :] - null
            width = top_ends[None, :] - top_starts[:, None]
            scores = np.where((width >= 0) & (width < most_tokens), scores, -np.inf)
            flat = _largest(scores.ravel(), CANDIDATES)[0]
            if scores.flat[flat] > best:
                best = float(scores.flat[flat])
                first, last = top_starts[flat // len(top_ends)], top_ends[flat % len(top_ends)]
                text = example["context"][offsets[first][0] : offsets[last][1]].strip()
        position = -1
        if known := (example.get("answers") or {}).get("answer_start"):
            position = bisect_right(sorted(tokens), (min(known), np.inf)) - 1
        answers.append(Answer(text, text, best, len(tokens), position))
    return answers


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The indices of the ``count`` largest values, largest first."""
    count = min(count, len(values))
    chosen = np.argpartition(-values, count - 1)[:count]
    return chosen[np.argsort(-values[chosen], kind="stable")]


def score_answers(examples: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> dict[str, Any]:
    """Scores of ``answers`` to ``examples`` in per cent.

    Args:
        examples: rows of ``load_qa``; ``gold`` (or else ``answers``) are the correct texts, none for a question
            without an answer.
        answers: one answer per example, from a :class:`QAReader`.

    Returns:
        exact_match and f1 with standard errors, n, and scores ``by_length`` and ``by_position`` (of the answer), both
        in tokens. If some questions have no answer, SQuAD 2's HasAns_*, NoAns_*, and best_f1 at best_f1_threshold.
        A question with several documents (TriviaQA) counts once (:func:`by_question`).
    """
    examples, answers = by_question(examples, answers)
    scores = [_score(example, answer.text) for example, answer in zip(examples, answers, strict=True)]
    result: dict[str, Any] = {
        **summarise(scores),
        "by_length": by_bucket(scores, [answer.length for answer in answers], summarise),
        "by_position": by_bucket(scores, [answer.position for answer in answers], summarise),
    }

    # The names of SQuAD 2's script, where some questions have no answer.
    parts: dict[str, list[tuple[float, float]]] = {"HasAns": [], "NoAns": []}
    for example, score in zip(examples, scores, strict=True):
        parts["HasAns" if gold_of(example) else "NoAns"].append(score)
    if all(parts.values()):
        result["best_f1_threshold"], result["best_f1"] = best_threshold(examples, answers)
        for name, part in parts.items():
            of_part = summarise(part)
            result[f"{name}_exact"] = of_part["exact_match"]
            result[f"{name}_f1"] = of_part["f1"]
            result[f"{name}_total"] = of_part["n"]
    return result


def by_question(
    examples: Sequence[Mapping[str, Any]], answers: Sequence[Answer]
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Answer]]:
    """Merge the documents of a question (TriviaQA) into one example with the best-scored answer.

    Joshi et al. (2017, section 5.2) choose the answer in this way. The example gets the total length of all documents,
    and the position of the first correct answer. Examples with one document do not change.
    """
    groups: dict[Any, list[int]] = {}
    for number, example in enumerate(examples):
        groups.setdefault(str(example["id"]) if example.get("document") else number, []).append(number)
    if len(groups) == len(examples):
        return examples, answers
    merged = []
    for numbers in groups.values():
        group = [answers[number] for number in numbers]
        best = max(group, key=lambda answer: answer.score)
        position = next((answer.position for answer in group if answer.position >= 0), -1)
        merged.append(replace(best, length=sum(answer.length for answer in group), position=position))
    return [examples[numbers[0]] for numbers in groups.values()], merged


def gold_of(example: Mapping[str, Any]) -> list[str]:
    return list(example.get("gold") or example["answers"]["text"])


def _score(example: Mapping[str, Any], text: str) -> tuple[float, float]:
    """Exact match and F1 of a text, by TriviaQA's script if the question has several documents, else by SQuAD's."""
    score = score_alias if example.get("document") else score_answer
    return score(text, gold_of(example))


def best_threshold(examples: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> tuple[float, float]:
    """The threshold with the highest F1, and that F1 in per cent. As in SQuAD 2's evaluation script, spans become "no
    answer" in the order of their scores."""
    ranked = []
    for example, answer in zip(examples, answers, strict=True):
        ranked.append((answer.score, _score(example, answer.best)[1], float(not gold_of(example))))
    ranked.sort(key=lambda row: row[0])
    current = best = sum(span for _, span, _ in ranked)
    threshold = ranked[0][0] - 1.0
    scores = [score for score, _, _ in ranked]
    followers = [*scores[1:], scores[-1] + 2.0]
    # this span and all before it become "no answer"
    for (score, span, nothing), following in zip(ranked, followers, strict=True):
        current += nothing - span
        if current > best and following > score:
            best, threshold = current, (score + following) / 2
    return threshold, 100 * best / len(ranked)


def write_predictions(folder: Path, examples: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> None:
    """Write ``predictions.json`` and ``null_odds.json`` for SQuAD's scripts."""
    examples, answers = by_question(examples, answers)
    named = {str(example["id"]): answer for example, answer in zip(examples, answers, strict=True)}
    odds = {name: -answer.score if math.isfinite(answer.score) else 0.0 for name, answer in named.items()}
    write_json(folder / "predictions.json", {name: answer.text for name, answer in named.items()})
    write_json(folder / "null_odds.json", odds)
