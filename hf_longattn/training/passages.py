"""Train passages of long documents as late chunks, contrasted with passages of the same document and of the batch.

Negatives from the same document teach a passage its own content. Negatives from other documents teach it the document's context. Both
together are InSeNT (Conti et al. 2025, arXiv 2505.24782).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor, nn

from ..data.sources import DataError
from ..evaluation import load_metric
from ..evaluation.late_chunking import late_chunks, read_tokens

PART = 128
"""Tokens of a part of a document that is a negative."""
TOGETHER = 8
"""Passages of one document per batch. The document is read once for all of them."""


def with_tokens(data: Dataset, tokenizer: Any, prompt: str, longest: int | None) -> Dataset:
    """Add ``label``: the first token of the passage, and the token after its last one.

    Pairs whose passage is cut off are left out.

    Args:
        prompt: precedes every document.
        longest: tokens at which documents are cut.

    Raises:
        DataError: a passage without a token, or none that is not cut off.
    """

    def convert(row: dict[str, Any], number: int) -> dict[str, Any]:
        tokens = read_tokens(tokenizer, row["positive"], prompt)
        inside = ((tokens.starts >= row["start"]) & (tokens.starts < row["end"])).nonzero().flatten() + len(tokens.before)
        if not len(inside):
            raise DataError(f"Pair {number + 1} has no token from {row['start']} to {row['end']}; correct its start and end.")
        return {"anchor": row["anchor"], "positive": row["positive"], "label": [int(inside[0]), int(inside[-1]) + 1]}

    rows = data.map(convert, with_indices=True, remove_columns=data.column_names)
    uncut = rows if longest is None else rows.filter(lambda row: row["label"][1] < longest)
    if not len(uncut):
        raise DataError(f"All passages end after the first {longest:,} tokens, where documents are cut; give a greater --max-length.")
    return uncut


class PassageLoss(nn.Module):
    """The cross-entropy of each query's passage among all passages and parts of the batch's documents.

    Parts are :data:`PART` tokens long. A part that overlaps a query's passage is no negative of that query.

    Args:
        model: a sentence-transformers model that averages token states.
        scale: of the cosines.
    """

    def __init__(self, model: Any, scale: float = 20.0) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, sentence_features: Any, labels: Tensor) -> Tensor:
        anchors, documents = sentence_features
        queries = self.model(anchors)["sentence_embedding"]
        _, document = torch.unique(documents["input_ids"], dim=0, return_inverse=True)
        of_row = document.tolist()
        states = [self._states(documents, of_row.index(number)) for number in range(max(of_row) + 1)]  # each document is read once
        places = [(number, start, end) for number, (start, end) in zip(of_row, labels.tolist(), strict=True)]
        for number, read in enumerate(states):
            places += [(number, start, min(start + PART, len(read))) for start in range(0, len(read), PART)]
        vectors = torch.stack([states[number][start:end].mean(0) for number, start, end in places])
        scores = F.normalize(queries, dim=-1) @ F.normalize(vectors, dim=-1).T * self.scale
        texts, starts, ends = torch.tensor(places, device=scores.device).unbind(1)
        rows = torch.arange(len(queries), device=scores.device)
        overlaps = (texts[rows, None] == texts) & (starts[rows, None] < ends) & (starts < ends[rows, None])
        overlaps[rows, rows] = False
        return F.cross_entropy(scores.masked_fill(overlaps, -torch.inf), rows)

    def _states(self, documents: Any, row: int) -> Tensor:
        """Token states ``(n, hidden_size)`` of a document, read without the padding of its batch."""
        real = documents["attention_mask"][row].bool()
        inputs = {name: value[row, real][None] for name, value in documents.items() if isinstance(value, Tensor)}
        return self.model[0](inputs)["token_embeddings"][0]


class ByDocument(DefaultBatchSampler):
    """Batches of pairs in which :data:`TOGETHER` pairs share a document."""

    def __init__(self, dataset: Dataset, batch_size: int, drop_last: bool, seed: int = 0, **more: Any) -> None:
        super().__init__(range(len(dataset)), batch_size=batch_size, drop_last=drop_last, seed=seed, **more)
        self.documents: dict[str, list[int]] = defaultdict(list)
        for row, text in enumerate(dataset["positive"]):
            self.documents[text].append(row)

    def __iter__(self) -> Iterator[list[int]]:
        rng = random.Random(f"{self.seed} {self.epoch}")
        groups = []
        for rows in self.documents.values():
            mixed = rng.sample(rows, len(rows))
            groups += [mixed[first : first + TOGETHER] for first in range(0, len(mixed), TOGETHER)]
        rng.shuffle(groups)
        order = [row for group in groups for row in group]
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch


def find_passages(model: Any, pairs: Dataset, prompt: str, batch_size: int) -> dict[str, float]:
    """Scores of finding each query's passage among the passages of all documents."""
    spans: dict[str, dict[tuple[int, int], None]] = defaultdict(dict)
    relevant: dict[str, set[tuple[str, int, int]]] = defaultdict(set)
    for row in pairs:
        spans[row["positive"]][row["start"], row["end"]] = None
        relevant[row["anchor"]].add((row["positive"], row["start"], row["end"]))
    passages = [list(inside) for inside in spans.values()]
    documents = late_chunks(
        model.transformers_model, model.tokenizer, list(spans), spans=passages, prefix=prompt, max_length=model.max_seq_length
    )
    places = [(text, *span) for text, inside in spans.items() for span in inside]
    vectors = torch.stack([chunk.embedding for chunks in documents for chunk in chunks])
    queries = model.encode_query(list(relevant), batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
    scores = F.normalize(queries.float().cpu(), dim=-1) @ vectors.T
    ranking = load_metric("ranking").compute(
        predictions=scores.tolist(), references=[[int(place in right) for place in places] for right in relevant.values()]
    )
    return {name: value for name, value in ranking.items() if not name.startswith("ndcg")}
