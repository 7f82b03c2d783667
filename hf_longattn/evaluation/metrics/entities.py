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
    """precision, recall and f1 over all documents, and the accuracy of single words, in per cent; ``f1_se`` is the standard error over
    documents of f1 as a ratio (Cochran 1977, section 2.11), ``n`` their number."""
    right = said = true = same = words = 0
    counts: list[tuple[int, int]] = []
    for guess, truth in zip(predicted, gold, strict=True):
        ours, theirs = entities(guess), entities(truth)
        right, said, true = right + len(ours & theirs), said + len(ours), true + len(theirs)
        counts.append((2 * len(ours & theirs), len(ours) + len(theirs)))
        same, words = same + sum(a == b for a, b in zip(guess, truth, strict=True)), words + len(truth)
    precision, recall = right / said if said else 0.0, right / true if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    n, whole = len(counts), max(1, said + true)
    error = math.sqrt(n / (n - 1) * sum((twice - f1 * both) ** 2 for twice, both in counts)) / whole if n > 1 else math.nan
    shares = {"precision": precision, "recall": recall, "f1": f1, "f1_se": error, "accuracy": same / max(1, words)}
    return {**{name: 100 * share for name, share in shares.items()}, "n": n}
