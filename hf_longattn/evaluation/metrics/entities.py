"""Entity-level precision, recall and F1 of tagged words by seqeval's strict mode, in IOB2, IOBES, BILOU or IOB1."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ...errors import check_extra
from ..summaries import in_percent, ratio_and_error

Entity = tuple[str, int, int]
"""Entity type, index of the first word, and index after the last word."""
SCHEMES = {"IOBES": "S", "BILOU": "U", "IOB2": "B", "IOB1": "I"}
"""seqeval's schemes, each with its prefix for one-word entities."""
EXAMPLE = ([["B-A", "O"]], [["B-A", "O"]], "f1")
"""Identical predictions and references, and the name of the score that must then be 100. Used by tests."""


def compute(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Predictions and references are a list of tags for each document.

    Tags have prefixes: IOB2 (B-, I-), IOBES or BILOU. In IOB2, an I- that continues no entity of its type is ignored,
    as in seqeval's strict mode. A tag without a prefix is an entity of one word; O is not an entity.

    The scheme is found from the prefixes. B and I mean IOB2, or IOB1 if entities of the references begin with I-.
    Returns a dict: precision, recall, f1 and accuracy in per cent, their standard errors (f1_se, ...) for ten
    documents or more, and n, the number of documents.
    """
    scheme = scheme_of(predictions, references)
    counts: dict[str, list[tuple[float, int]]] = {name: [] for name in ("precision", "recall", "f1", "accuracy")}
    for tags, gold_tags in zip(predictions, references, strict=True):
        entities, gold_entities = entities_of(tags, scheme), entities_of(gold_tags, scheme)
        right = len(entities & gold_entities)
        counts["precision"].append((right, len(entities)))
        counts["recall"].append((right, len(gold_entities)))
        counts["f1"].append((2 * right, len(entities) + len(gold_entities)))
        counts["accuracy"].append((sum(a == b for a, b in zip(tags, gold_tags, strict=True)), len(gold_tags)))
    return in_percent({name: ratio_and_error(pairs) for name, pairs in counts.items()}, len(predictions))


def entities_of(tags: Sequence[str], scheme: str) -> set[Entity]:
    """seqeval's entities of one document in a scheme of :data:`SCHEMES`. Raises :class:`MissingExtraError` if seqeval
    is not installed."""
    check_extra("metrics", "seqeval")
    from seqeval import scheme as schemes

    known = [tag == "O" or (tag[1:2] == "-" and tag[0] in scheme.rstrip("12")) for tag in tags]
    prefixed = [tag if is_known else f"{SCHEMES[scheme]}-{tag}" for tag, is_known in zip(tags, known, strict=True)]
    return {
        (entity.tag, entity.start, entity.end)
        for entity in schemes.Tokens(prefixed, getattr(schemes, scheme)).entities
    }


def scheme_of(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> str:
    """IOB1, IOBES or BILOU if the tags are of such a scheme, otherwise IOB2."""
    # In IOB1 (CoNLL-2003), all entities of the references begin with I-, and B- only separates neighbours.
    pairs = [pair for tags in references for pair in pairwise(["O", *tags])]
    starts = {
        tag[:2]
        for before, tag in pairs
        if tag[1:2] == "-" and (before[:2] not in ("B-", "I-") or before[2:] != tag[2:])
    }
    if starts == {"I-"}:
        return "IOB1"
    prefixes = {tag[0] for tags in [*predictions, *references] for tag in tags if tag[1:2] == "-"}
    if prefixes & set("ES"):
        return "IOBES"
    return "BILOU" if prefixes & set("LU") else "IOB2"
