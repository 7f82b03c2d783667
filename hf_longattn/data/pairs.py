"""Pairs of texts for embeddings and rerankers: reading, negatives, and evaluation data."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from datasets import Dataset, Features, Value

from hf_longattn.data.sources import DataError

LABELLED_PAIRS = Features({"anchor": Value("string"), "positive": Value("string"), "label": Value("float32")})
CANDIDATES = 10
"""Number of documents that a reranker ranks for each query in evaluation."""
Relevant = Mapping[str, Sequence[str]]
"""The texts that belong to each anchor in all data. None of them becomes a negative of it."""


def relevant_texts(*parts: Dataset) -> dict[str, list[str]]:
    """Anchor -> its texts in all parts, without duplicates."""
    relevant: dict[str, dict[str, None]] = {}
    for part in parts:
        for row in part.select_columns(["anchor", "positive"]):
            relevant.setdefault(row["anchor"], {})[row["positive"]] = None
    return {anchor: list(texts) for anchor, texts in relevant.items()}


def retrieval(held_out: Dataset, relevant: Relevant) -> tuple[dict[str, str], dict[str, str], dict[str, set[str]]]:
    """The arguments of sentence-transformers' ``InformationRetrievalEvaluator``: queries, documents and relevant documents by key.

    Every anchor is a query once. The documents are the positives and negatives of all anchors.
    """
    texts = [text for name in ("positive", "negative") if name in held_out.column_names for text in held_out[name]]
    documents = {text: f"d{number}" for number, text in enumerate(dict.fromkeys(texts))}
    queries = {f"q{number}": anchor for number, anchor in enumerate(dict.fromkeys(held_out["anchor"]))}
    right = {key: {documents[text] for text in relevant[anchor] if text in documents} for key, anchor in queries.items()}
    return queries, {key: text for text, key in documents.items()}, right


def labelled_pairs(data: Dataset, relevant: Relevant, seed: int) -> Dataset:
    """Every pair with the label 1, and its anchor with a wrong text with the label 0: the negative, or another one's text by ``seed``."""
    anchors, right = data["anchor"][:], data["positive"][:]
    if "negative" in data.column_names:
        wrong = data["negative"][:]
    else:
        pool = list(dict.fromkeys(chain.from_iterable(relevant.values())))
        wrong = [_others(anchor, pool, relevant, f"{seed}:{number}", 1)[0] for number, anchor in enumerate(anchors)]
    columns = {"anchor": anchors * 2, "positive": right + wrong, "label": [1.0] * len(right) + [0.0] * len(wrong)}
    return Dataset.from_dict(columns, features=LABELLED_PAIRS)


def reranking(held_out: Dataset, relevant: Relevant, seed: int) -> list[dict[str, Any]]:
    """Each held-out anchor with its texts and negatives, :data:`CANDIDATES` in all, for sentence-transformers'
    ``CrossEncoderRerankingEvaluator``. Further negatives are texts of other anchors, drawn by ``seed``."""
    pool, negatives = list(dict.fromkeys(chain.from_iterable(relevant.values()))), dict[str, list[str]]()
    if "negative" in held_out.column_names:
        for row in held_out:
            negatives.setdefault(row["anchor"], []).append(row["negative"])
    samples = []
    for anchor, positives in relevant_texts(held_out).items():
        wrong = [text for text in dict.fromkeys(negatives.get(anchor, [])) if text not in relevant[anchor]]
        more = CANDIDATES - len(positives) - len(wrong)
        if not wrong or (more > 0 and len(pool) > len(relevant[anchor])):
            wrong = list(dict.fromkeys([*wrong, *_others(anchor, pool, relevant, f"{seed}:{anchor}", max(1, more))]))
        samples.append({"query": anchor, "positive": positives, "negative": wrong})
    return samples


def _others(anchor: str, pool: Sequence[str], relevant: Relevant, seed: str, count: int) -> list[str]:
    """Up to ``count`` different texts that do not belong to the anchor."""
    right = set(relevant[anchor])
    drawn = random.Random(seed).sample(pool, min(len(pool), count + len(right)))
    wrong_texts = [text for text in drawn if text not in right][:count]
    if not wrong_texts:
        advice = "give pairs with other texts, or a column 'negative'"
        raise DataError(f"All texts belong to {anchor!r:.80}, so a reranker has nothing to tell them from; {advice}.")
    return wrong_texts
