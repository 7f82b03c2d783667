"""Answers as texts: SQuAD's and TriviaQA's normalisation, and the places of a text in a document."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from typing import Any
from unicodedata import category, normalize

ARTICLES = re.compile(r"\b(a|an|the)\b")
MOST_MATCHES = 64
"""Occurrences of an answer that distant supervision takes from one document."""
UNSPACED = re.compile("[\u0e00-\u109f\u1780-\u17ff\u1950-\u1aaf\u2e80-\u312f\u3190-\ua4cf\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]")
"""A character of a script without spaces between words, such as Thai, Tibetan, Burmese, Khmer, kana and Chinese characters."""
_NOTHING = str.maketrans("", "", string.punctuation)
_SPACES = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


def normalised_alias(text: str) -> str:
    """Lower case, single spaces instead of punctuation, no articles: TriviaQA's normalisation."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(_SPACES)).split())


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: SQuAD's normalisation."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(_NOTHING)).split())


def occurrences(context: str, texts: Iterable[str], *, normalised: bool = False) -> dict[str, list[Any]]:
    """SQuAD's answers: the occurrences of ``texts`` in ``context`` as whole words or, if there are none, anywhere.

    Scripts without spaces have no whole words, so that every occurrence counts. Case, kind of space and Unicode normalisation form do not
    matter. With ``normalised``, whole words alone count, and punctuation and articles between them are ignored, as in TriviaQA's script.
    """
    gap = r"[\W_]{1,4}(?:(?:an?|the)[\W_]{1,4})?" if normalised else r"\s+"
    lowered = normalize("NFD", context.lower())
    patterns = []
    for text in {normalised_alias(text) for text in texts} if normalised else texts:
        words = text.split()
        if words and all(normalize("NFD", word.lower()) in lowered for word in words):  # most of an answer's aliases are not there
            forms = [{word, normalize("NFC", word), normalize("NFD", word)} for word in words]
            patterns.append(re.compile(gap.join(f"(?:{'|'.join(map(re.escape, word))})" for word in forms), re.IGNORECASE))
    text_by_start: dict[int, str] = {}
    for anywhere in (False, True):
        for pattern in patterns:
            match = pattern.search(context)
            while match is not None:
                start, end = match.span()
                if anywhere or not (_goes_on(context, start, -1) or _goes_on(context, end - 1, 1)):
                    text_by_start[start] = max(text_by_start.get(start, ""), match.group(), key=len)
                else:
                    end = start + 1
                match = pattern.search(context, end)
        if text_by_start or normalised:
            break
    starts = sorted(text_by_start)[:MOST_MATCHES]
    return {"text": [text_by_start[start] for start in starts], "answer_start": starts}


def _goes_on(context: str, place: int, step: int) -> bool:
    """Whether the word at ``place`` goes on at the next character, or with step -1 at the one before."""
    if not 0 <= place + step < len(context):
        return False
    here, there = context[place], context[place + step]
    if category(here if step < 0 else there).startswith("M"):  # a mark belongs to the character before it
        return True
    in_word = there.isalnum() or there == "_" or category(there).startswith("M")
    return in_word and UNSPACED.match(here) is None and UNSPACED.match(there) is None
