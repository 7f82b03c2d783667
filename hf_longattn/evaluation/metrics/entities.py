"""Entity-level precision, recall and F1 of tagged words, as CoNLL's script and seqeval (strict IOB2 or IOBES) count them."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate

from hf_longattn.evaluation.summaries import ratio_and_error

Entity = tuple[str, int, int]
"""Kind, first word, and the word after the last."""
_KWARGS = """
predictions, references: a list of tags for each document.
Returns a dict: precision, recall, f1 and accuracy in per cent, their standard errors (f1_se, ...), and n, the number of documents.
"""
EXAMPLE = ([["B-A", "O"]], [["B-A", "O"]], "f1")
"""Predictions and references that agree, and the score that is then 100; the tests compute it."""


class Entities(evaluate.Metric):
    """``evaluate.Metric`` with a list of tags for each document."""

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.List(datasets.Value("string"))
        features = datasets.Features({"predictions": tags, "references": tags})
        return evaluate.MetricInfo(description=__doc__ or "", citation="", inputs_description=_KWARGS, features=features)

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        return entity_scores(predictions, references)


def entity_scores(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """precision, recall and f1 over all documents, and the accuracy of single words, in per cent; ``f1_se`` … are their standard errors
    over documents, ``n`` the number of documents."""
    counts: dict[str, list[tuple[int, int]]] = {name: [] for name in ("precision", "recall", "f1", "accuracy")}
    for tags, gold_tags in zip(predicted, gold, strict=True):
        entities, gold_entities = entities_of(tags), entities_of(gold_tags)
        right = len(entities & gold_entities)
        counts["precision"].append((right, len(entities)))
        counts["recall"].append((right, len(gold_entities)))
        counts["f1"].append((2 * right, len(entities) + len(gold_entities)))
        counts["accuracy"].append((sum(a == b for a, b in zip(tags, gold_tags, strict=True)), len(gold_tags)))
    scores: dict[str, float] = {}
    for name, pairs in counts.items():
        ratio, error = ratio_and_error(pairs)
        scores |= {name: 100 * ratio, f"{name}_se": 100 * error}
    return {**scores, "n": len(counts["f1"])}


def entities_of(tags: Sequence[str]) -> set[Entity]:
    """The entities of one document: ``B-``, ``I-``, ``E-``, ``S-`` and a kind; an ``I-`` of another kind than before starts one, as in
    CoNLL's script. Tags without such a prefix, but for ``O``, are entities of one word each."""
    entities: set[Entity] = set()
    kind, start = "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-") if tag[1:2] == "-" else ("" if tag == "O" else "S", "", "" if tag == "O" else tag)
        continues = bool(kind) and prefix in ("I", "E") and name == kind
        if kind and not continues:
            entities.add((kind, start, place))
            kind = ""
        if prefix in ("B", "S", "I", "E") and not continues:
            kind, start = name, place
        if kind and prefix in ("E", "S"):
            entities.add((kind, start, place + 1))
            kind = ""
    return entities
