"""TriviaQA's official scores (triviaqa_evaluation.py): exact match and F1 against the best of an answer's aliases."""

from __future__ import annotations

from collections.abc import Sequence

from hf_longattn.data.answers import normalised_alias
from hf_longattn.evaluation.metrics.long_qa import token_f1


def score_answer(prediction: str, aliases: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 (0 … 1) against the best of ``aliases``; without aliases, only '' is right."""
    found = normalised_alias(prediction)
    if not aliases:
        return float(not found), float(not found)
    wanted = [normalised_alias(alias) for alias in aliases]
    return max(float(found == alias) for alias in wanted), max(token_f1(found.split(), alias.split()) for alias in wanted)
