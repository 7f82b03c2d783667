"""Precision, recall and F1 of entities in tagged words, by seqeval's strict mode.

The scheme of the tags is IOB2, IOBES, BILOU or IOB1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ...errors import check_extra
from ..summaries import in_percent, ratio_and_error

Entity = tuple[str, int, int]
"""Entity type, index of the first word, and index after the last word."""
SCHEMES = {"IOBES": "S", "BILOU": "U", "IOB2": "B", "IOB1": "I"}
"""Name of a tagging scheme in seqeval -> the scheme's prefix for an entity of one word."""
EXAMPLE = ([["B-A", "O"]], [["B-A", "O"]], "f1")
"""Identical predictions and references, and the name of the score that must then be 100. Used by tests."""


def compute(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores of the entities in tagged documents.

    The scheme of the tags is found by :func:`scheme_of`. In IOB2, a tag I- that does not continue an entity of its
    type is ignored, as in seqeval's strict mode. A tag without a prefix is an entity of one word. O is not an entity.

    Args:
        predictions, references: a list of tags for each document.

    Returns:
        precision, recall, f1 and accuracy (of tags) in per cent, their standard errors (f1_se, ...) for ten documents
        or more, and n, the number of documents.
    """
    scheme = scheme_of(predictions, references)
    counts: dict[str, list[tuple[float, int]]] = {name: [] for name in ("precision", "recall", "f1", "accuracy")}
    for tags, gold_tags in zip(predictions, references, strict=True):
        entities, gold_entities = entities_of(tags, scheme), entities_of(gold_tags, scheme)
        right = len(entities & gold_entities)
        counts["precision"].append((right, len(entities)))
        counts["recall"].append((right, len(gold_entities)))
        counts["f1"].append((2 * right, len(entities) + len(gold_entities)))
        right_tags = sum(tag == gold_tag for tag, gold_tag in zip(tags, gold_tags, strict=True))
        counts["accuracy"].append((right_tags, len(gold_tags)))
    return in_percent({name: ratio_and_error(pairs) for name, pairs in counts.items()}, len(predictions))


def entities_of(tags: Sequence[str], scheme: str) -> set[Entity]:
    """The entities of one document, as seqeval finds them in a scheme of :data:`SCHEMES`.

    Raises:
        MissingExtraError: seqeval is not installed.
    """
    check_extra("metrics", "seqeval")
    from seqeval import scheme as schemes

    prefixed_tags = []
    for tag in tags:
        has_prefix = tag[1:2] == "-" and tag[0] in scheme.rstrip("12")
        if tag != "O" and not has_prefix:
            tag = f"{SCHEMES[scheme]}-{tag}"
        prefixed_tags.append(tag)
    entities = schemes.Tokens(prefixed_tags, getattr(schemes, scheme)).entities
    return {(entity.tag, entity.start, entity.end) for entity in entities}


def scheme_of(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> str:
    """The scheme of the tags, by their prefixes: IOB1, IOBES, BILOU, or else IOB2."""
    # In IOB1 (CoNLL-2003), all entities of the references begin with I-, and B- only separates neighbours.
    first_prefixes = set()
    for tags in references:
        for before, tag in pairwise(["O", *tags]):
            begins = before[:2] not in ("B-", "I-") or before[2:] != tag[2:]
            if tag[1:2] == "-" and begins:
                first_prefixes.add(tag[:2])
    if first_prefixes == {"I-"}:
        return "IOB1"
    prefixes = {tag[0] for tags in [*predictions, *references] for tag in tags if tag[1:2] == "-"}
    if prefixes & set("ES"):
        return "IOBES"
    return "BILOU" if prefixes & set("LU") else "IOB2"
