"""The words of prose and of identifiers, without their endings: what a docstring and a name have in common."""

from __future__ import annotations

import re

DEFINITION = re.compile(r"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+(\w+)", re.MULTILINE)
"""A line of Python that defines a name, which is its first group."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_ENDINGS = ("ations", "ation", "ings", "ing", "ers", "er", "ies", "ied", "ed", "es", "ly", "s", "e", "y")


def stems(text: str) -> list[str]:
    """Split text and identifiers into lower-case words, and cut common English endings off."""
    return [stem for stem, _ in stem_places(text)]


def stem_places(text: str) -> list[tuple[str, int]]:
    """The same, each with the character at which its word starts."""
    return [(_stem(match[0].lower()), match.start()) for match in _WORD.finditer(text)]


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
