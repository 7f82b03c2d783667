"""Generated pairs that show how far embeddings see: LongEmbed's passkey and needle tasks.

Zhu et al. 2024, arXiv 2404.12096. Fifty documents differ by one fact each, at a random depth of the same filler; fifty queries ask for
them. Chance is 2 %.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from datasets import Dataset

from ..conversion import verification_text
from ..data.sources import DataError
from ..evaluation.probes.passkey import GARBAGE
from ..evaluation.probes.words import ADJECTIVES, NOUNS

COUNT = 50
LENGTHS = (64, 131_072)
"""Minimum and maximum tokens of a document."""
_SOURCE = re.compile(r"(passkey|needle):(\d+)(K?)")
_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])")


def is_probe(source: str) -> bool:
    """Whether a source is "passkey:4096", "needle:8K" or the like."""
    return _SOURCE.fullmatch(source) is not None


def probe_pairs(source: str) -> Dataset:
    """The pairs of a probe, always the same: anchor and positive.

    Args:
        source: the task and the tokens of its documents, words and signs, "passkey:4096" or "needle:8K".

    Raises:
        DataError: too few tokens, or too many.
    """
    match = _SOURCE.fullmatch(source)
    assert match is not None
    length = int(match[2]) * (1024 if match[3] else 1)
    if not LENGTHS[0] <= length <= LENGTHS[1]:
        raise DataError(f"{source} must have {LENGTHS[0]} to {LENGTHS[1]:,} tokens.")
    rng = random.Random(source)
    pieces = _TOKEN.findall(f"{GARBAGE} " if match[1] == "passkey" else verification_text(None)[0])
    rows = []
    for anchor, fact in _facts(match[1], rng):
        room = length - len(_TOKEN.findall(fact))
        first = rng.randrange(len(pieces))
        around = [pieces[(first + number) % len(pieces)] for number in range(room)]
        depth = rng.randint(0, room)
        rows.append({"anchor": anchor, "positive": f"{''.join(around[:depth])} {fact}{''.join(around[depth:])}".strip()})
    return Dataset.from_list(rows)


def _facts(task: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Queries and the sentences that answer them."""
    names = rng.sample([f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS], 2 * COUNT)
    for name, other in zip(names[:COUNT], names[COUNT:], strict=True):
        if task == "passkey":
            key = rng.randint(10_000, 99_999)
            yield f"What is the pass key for the {name}?", f"The pass key for the {name} is {key}. Remember it."
        else:
            price = rng.randint(20, 900)
            yield f"To whom was the {name} sold?", f"After long years, the {name} went to the owner of the {other} for {price} pounds."
