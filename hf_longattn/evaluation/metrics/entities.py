"""Entity-level precision, recall and F1 of tagged words, as CoNLL's script and seqeval (strict IOB2 or IOBES) count them."""

from __future__ import annotations

import math
from collections.abc import Sequence

Entity = tuple[str, int, int]
"""Kind, first word, and the word after the last."""


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of one document: ``B-``, ``I-``, ``E-``, ``S-`` and a kind; an ``I-`` of another kind than before starts one, as in
    CoNLL's script. Tags without such a prefix, but for ``O``, are entities of one word each."""
    found: set[Entity] = set()
    kind, start = "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-") if tag[1:2] == "-" else ("" if tag == "O" else "S", "", "" if tag == "O" else tag)
        goes_on = bool(kind) and prefix in ("I", "E") and name == kind
        if kind and not goes_on:
            found.add((kind, start, place))
            kind = ""
        if prefix in ("B", "S", "I", "E") and not goes_on:
            kind, start = name, place
        if kind and prefix in ("E", "S"):
            found.add((kind, start, place + 1))
            kind = ""
    return found


def entity_scores(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """precision, recall and f1 over all documents, and the accuracy of single words, in per cent; ``f1_se`` … are their standard errors
    over documents, as those of ratios (Cochran 1977, section 2.11), ``n`` the number of documents."""
    counts: dict[str, list[tuple[int, int]]] = {name: [] for name in ("precision", "recall", "f1", "accuracy")}
    for guess, truth in zip(predicted, gold, strict=True):
        ours, theirs = entities(guess), entities(truth)
        right = len(ours & theirs)
        counts["precision"].append((right, len(ours)))
        counts["recall"].append((right, len(theirs)))
        counts["f1"].append((2 * right, len(ours) + len(theirs)))
        counts["accuracy"].append((sum(a == b for a, b in zip(guess, truth, strict=True)), len(truth)))
    found: dict[str, float] = {}
    for name, pairs in counts.items():
        ratio, error = ratio_of(pairs)
        found |= {name: 100 * ratio, f"{name}_se": 100 * error}
    return {**found, "n": len(counts["f1"])}


def ratio_of(pairs: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """The sum of the first numbers over that of the second, and its standard error over pairs; 0 of fewer than two pairs."""
    count, whole = len(pairs), max(1, sum(of for _, of in pairs))
    ratio = sum(part for part, _ in pairs) / whole
    spread = sum((part - ratio * of) ** 2 for part, of in pairs)
    return ratio, math.sqrt(spread * count / (count - 1)) / whole if count > 1 else 0.0
