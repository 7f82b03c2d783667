"""Baselines without a model: a random candidate, and the candidate whose words the question shares."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

_DEFINITION = re.compile(r"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+(\w+)", re.MULTILINE)
_ASSIGNED = re.compile(r"^# lookup (\w+) (\w+)$", re.MULTILINE)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_ENDINGS = ("ations", "ation", "ings", "ing", "ers", "er", "ies", "ied", "ed", "es", "ly", "s", "e", "y")


class RandomCandidate:
    """Answers with a random definition of the module (in lookup documents: with the last word of a random line)."""

    name = "random definition"
    seed: int | None = None

    def answer(self, record: Mapping[str, Any]) -> str:
        """Return the answer to ``record``; the choice depends on its id alone."""
        found = candidates(record["context"])
        return random.Random(str(record["id"])).choice(found)[1] if found else ""


class LexicalRule:
    """Answers with the definition whose name shares most word stems with the question (in lookup: the asked name's line).

    Among equals it takes the name with the smallest share of words that the question lacks, then the first.
    """

    name = "lexical rule"
    seed: int | None = None

    def answer(self, record: Mapping[str, Any]) -> str:
        """Return the answer to ``record``."""
        asked = set(stems(record["question"]))
        best, best_score = "", (-1.0, -1.0)
        for key, answer in candidates(record["context"]):
            words = stems(key)
            shared = sum(word in asked for word in words)
            score = (float(shared), shared / max(1, len(words)))
            if score > best_score:
                best, best_score = answer, score
        return best


def candidates(context: str) -> list[tuple[str, str]]:
    """Return (key, answer) pairs: lookup lines where there are any, otherwise definitions as (name, name)."""
    lines = _ASSIGNED.findall(context)
    return lines or [(name, name) for name in _DEFINITION.findall(context)]


def stems(text: str) -> list[str]:
    """Split text and identifiers into lower-case words, and cut common English endings off."""
    return [_stem(word.lower()) for word in _WORD.findall(text)]


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
