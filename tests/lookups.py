"""Questions with one answer in a text of many lines: a value that a line gives to a name."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

MARKER = "# lookup"
NAMES = ("action", "batch", "cache", "device", "entry", "frame", "graph", "handle", "index", "kernel", "layer", "mask")
VALUES = ("active", "best", "clean", "dense", "early", "final", "green", "hidden", "inner", "large", "main", "normal")


def lookups(
    sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int
) -> list[dict[str, Any]]:
    """SQuAD-shaped questions about one text of at most so many ``tokens`` with its question: lines of the sources and,
    at random places, ``# lookup NAME VALUE``."""
    rng = random.Random(seed)
    pairs = list(zip(rng.sample(NAMES, 8), rng.sample(VALUES, 8), strict=True))
    marked = [f"{MARKER} {name} {value}\n" for name, value in pairs]
    source = [f"{line}\n" for line in rng.choice(sources).splitlines()]
    left = tokens - 40 - sum(len(tokenizer(line, add_special_tokens=False)["input_ids"]) for line in marked)
    start, lines = rng.randrange(len(source)), list[str]()
    for line in source[start:] + source[:start]:
        left -= len(tokenizer(line, add_special_tokens=False)["input_ids"])
        if left < 0:
            break
        lines.append(line)
    for line in marked:
        lines.insert(rng.randrange(len(lines) + 1), line)
    context = "".join(lines)
    found = [(name, value, context.index(f"{MARKER} {name} ") + len(f"{MARKER} {name} ")) for name, value in pairs]
    return [
        {"question": f"{MARKER} {name}", "context": context, "answers": {"text": [value], "answer_start": [start]}}
        for name, value, start in found
    ]
