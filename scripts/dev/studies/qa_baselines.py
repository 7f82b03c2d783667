"""Baselines without a model: a random candidate, and a rule that compares words."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from scripts.dev.studies.code_questions import WORD, words

_DEFINITION = re.compile(r"^[ \t]*(?:async[ \t]+)?def[ \t]+(\w+)[ \t]*\(", re.MULTILINE)
_IMPORT = re.compile(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)", re.MULTILINE)
_ASSIGNED = re.compile(r"^# lookup (\w+) (\w+)$", re.MULTILINE)
_QUOTED = re.compile(r"`([^`]*)`")
_OPEN, _CLOSED = "([{", ")]}"


class RandomCandidate:
    """A random parameter of the document's functions, a random module of its imports, or the last word of a random lookup line."""

    name = "random candidate"

    def answer(self, record: Mapping[str, Any]) -> str:
        """Return the answer to ``record``; the choice depends on its id alone."""
        found = candidates(record)
        return random.Random(str(record["id"])).choice(found)[1] if found else ""


class LexicalRule:
    """The candidate that shares most words with the question, then most runs of three letters, then the first.

    A parameter's words are its own and its function's name; a module's are its own and what is imported from it.
    """

    name = "lexical rule"

    def answer(self, record: Mapping[str, Any]) -> str:
        """Return the answer to ``record``."""
        asked = " ".join(_QUOTED.findall(record["question"])) or record["question"]
        asked_words, letters = words(asked), _trigrams(asked)
        best, best_score = "", (-1.0, -1.0)
        for key, answer in candidates(record):
            score = (len(asked_words & words(key)) / (1 + len(words(key))), len(letters & _trigrams(key)) / (1 + len(_trigrams(key))))
            if score > best_score:
                best, best_score = answer, score
        return best


def candidates(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (key, answer) pairs of the kind that the question asks for."""
    context, question = record["context"], record["question"]
    if "parameter" in question:
        found = [(match[1], _parameters(context, match.end())) for match in _DEFINITION.finditer(context)]
        return [(f"{name} {parameter}", parameter) for name, parameters in found if len(parameters) >= 3 for parameter in parameters]
    if "module" in question:
        return [(f"{module} {names}", module) for module, names in _IMPORT.findall(context)]
    return _ASSIGNED.findall(context)


def _parameters(context: str, start: int) -> list[str]:
    """The names of a parameter list that opens before ``start``, without ``self`` and ``cls``."""
    depth, names, part = 0, [], ""
    for character in context[start : start + 3000]:
        if character in _OPEN:
            depth += 1
        elif character in _CLOSED:
            depth -= 1
        if depth < 0 or (character == "," and not depth):
            name = re.match(r"\s*\**\s*(\w+)", part)
            names += [name[1]] if name else []
            part = ""
            if depth < 0:
                break
        else:
            part += character
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def _trigrams(text: str) -> set[str]:
    plain = "".join(WORD.findall(text)).lower()
    return {plain[place : place + 3] for place in range(len(plain) - 2)}
