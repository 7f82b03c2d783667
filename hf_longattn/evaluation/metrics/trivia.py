"""TriviaQA's official scores (triviaqa_evaluation.py): exact match and F1 against the best of an answer's aliases."""

from __future__ import annotations

import string
from collections.abc import Sequence

from hf_longattn.evaluation.metrics.long_qa import ARTICLES, token_f1

_SPACES = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


def normalise(text: str) -> str:
    """Lower case, single spaces instead of punctuation (SQuAD's normalisation deletes it), no articles."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(_SPACES)).split())


def score_answer(prediction: str, aliases: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 (0 … 1) against the best of ``aliases``; without aliases, only '' is right."""
    found = normalise(prediction)
    if not aliases:
        return float(not found), float(not found)
    wanted = [normalise(alias) for alias in aliases]
    return max(float(found == alias) for alias in wanted), max(token_f1(found.split(), alias.split()) for alias in wanted)
