"""Answers as texts: SQuAD's and TriviaQA's normalisation, and the places of a text in a document."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
MOST_MATCHES = 64
"""Occurrences of an answer that distant supervision takes from one document."""
_NOTHING = str.maketrans("", "", string.punctuation)
_SPACES = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


def normalised_alias(text: str) -> str:
    """Lower case, single spaces instead of punctuation, no articles: TriviaQA's normalisation."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(_SPACES)).split())


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: SQuAD's normalisation."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(_NOTHING)).split())


def occurrences(context: str, texts: Iterable[str], *, normalised: bool = False) -> dict[str, list[Any]]:
    """SQuAD's answers: every whole-word occurrence of ``texts`` in ``context``. Case and spaces do not matter. With ``normalised``,
    punctuation and articles between the words are ignored, as in TriviaQA's script."""
    gap = r"[\W_]{1,4}(?:(?:an?|the)[\W_]{1,4})?" if normalised else r"\s+"
    wanted = {normalised_alias(text) for text in texts} if normalised else texts
    text_by_start: dict[int, str] = {}
    lowered = context.lower()
    for text in wanted:
        words = text.split()
        if not words or not all(word.lower() in lowered for word in words):  # most of an answer's aliases are not there
            continue
        for match in re.finditer(rf"(?<!\w){gap.join(map(re.escape, words))}(?!\w)", context, re.IGNORECASE):
            text_by_start[match.start()] = max(text_by_start.get(match.start(), ""), match.group(), key=len)
    starts = sorted(text_by_start)[:MOST_MATCHES]
    return {"text": [text_by_start[start] for start in starts], "answer_start": starts}
