"""ROUGE-1, ROUGE-2 and ROUGE-L F-scores (Lin 2004), as the package ``rouge_score`` computes them without stemming: lower-cased words of
letters and digits; ROUGE-Lsum takes the union of the longest common subsequences of sentences (lines)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from hf_longattn.evaluation.metrics.long_qa import mean_and_error

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_WORD = re.compile(r"[a-z0-9]+")


def rouge_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-scores in per cent, with their standard errors over texts (``rouge1_se`` …) and the number of texts, ``n``."""
    scores = [rouge(prediction, reference) for prediction, reference in zip(predictions, references, strict=True)]
    found: dict[str, float] = {}
    for name, values in zip(NAMES, zip(*scores, strict=True) if scores else ((),) * len(NAMES), strict=True):
        mean, error = mean_and_error(values)
        found |= {name: 100 * mean, f"{name}_se": 100 * error}
    return {**found, "n": len(scores)}


def rouge(prediction: str, reference: str) -> tuple[float, float, float, float]:
    """The four F-scores (0 … 1) of one text."""
    ours, theirs = _WORD.findall(prediction.lower()), _WORD.findall(reference.lower())
    longest = len(_common(ours, theirs))
    return _grams(ours, theirs, 1), _grams(ours, theirs, 2), _f1(longest, len(ours), len(theirs)), _summary(prediction, reference)


def _grams(ours: list[str], theirs: list[str], size: int) -> float:
    some, other = (Counter(zip(*(words[at:] for at in range(size)), strict=False)) for words in (ours, theirs))
    return _f1(sum((some & other).values()), some.total(), other.total())


def _summary(prediction: str, reference: str) -> float:
    """The union of what each reference sentence has in common with every predicted one; a word counts as often as both texts have it."""
    ours, theirs = ([_WORD.findall(line.lower()) for line in text.splitlines()] for text in (prediction, reference))
    left, right = Counter(word for line in ours for word in line), Counter(word for line in theirs for word in line)
    total = left.total(), right.total()
    hits = 0
    for line in theirs:
        for at in sorted({at for other in ours for at in _common(line, other)}):
            word = line[at]
            if left[word] > 0 and right[word] > 0:
                hits += 1
                left[word] -= 1
                right[word] -= 1
    return _f1(hits, *total)


def _common(some: list[str], other: list[str]) -> list[int]:
    """Places in ``some`` of a longest common subsequence."""
    table = [[0] * (len(other) + 1) for _ in range(len(some) + 1)]
    for i, word in enumerate(some):
        for j, match in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if word == match else max(table[i][j + 1], table[i + 1][j])
    found, i, j = [], len(some), len(other)
    while i and j:
        if some[i - 1] == other[j - 1]:
            found.append(i - 1)
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def _f1(hits: int, ours: int, theirs: int) -> float:
    return 2 * hits / (ours + theirs) if hits else 0.0
