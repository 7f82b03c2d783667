"""Documents read segment by segment, for models with a memory: each row of a batch reads one document after another.

At the end of a document the row takes the next unread one, and ``memory_reset`` is 1.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from itertools import chain
from typing import Any

import datasets
import torch
from torch.nn.functional import pad
from torch.utils.data import Dataset

from hf_longattn.data.batching import EpochSampler

Place = tuple[int, int, int]
"""Number of the pass, of the document, and of the segment's first token."""


class Segments(Dataset[dict[str, Any]]):
    """Segments of ``length`` tokens of documents (:func:`.tokenization.to_documents`), by their :data:`Place`, padded on the right.

    ``None`` is a segment of padding.
    """

    def __init__(self, documents: datasets.Dataset, length: int, pad_token_id: int = 0) -> None:
        self.documents, self.length, self.pad_token_id = documents.with_format("numpy"), length, pad_token_id
        self.sizes = [len(row["input_ids"]) for row in documents]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, place: Place | None) -> dict[str, Any]:
        number, document, first = place or (0, 0, 0)
        ids = [] if place is None else self.documents[document]["input_ids"][first : first + self.length]
        tokens = pad(torch.tensor(ids, dtype=torch.long), (0, self.length - len(ids)), value=self.pad_token_id)
        mask = (torch.arange(self.length) < len(ids)).long()
        return {"input_ids": tokens, "attention_mask": mask, "memory_reset": int(first == 0), "epoch": number}


class SegmentBatches(EpochSampler):
    """The places of the segments of every batch.

    Process p of n gets every n-th batch from the p-th on, so that its rows go on from step to step.

    By ``seed``, passes have no end, and each has another order of the documents. Without, there is a single pass in their order, at whose
    end rows without a document are ``None``.
    """

    def __init__(self, segments: Segments, rows: int, seed: int | None = None, processes: int = 1) -> None:
        self.sizes, self.length, self.rows, self.seed, self.processes = segments.sizes, segments.length, rows, seed, processes

    def __iter__(self) -> Iterator[list[Place | None]]:
        documents = self._documents()  # a row at its end takes the next one
        for batch in itertools.zip_longest(*(chain.from_iterable(documents) for _ in range(self.rows * self.processes))):
            yield from (list(batch[first : first + self.rows]) for first in range(0, len(batch), self.rows))

    def _documents(self) -> Iterator[list[Place]]:
        for number in itertools.count() if self.seed is not None else range(1):
            order = list(range(len(self.sizes)))
            if self.seed is not None:
                random.Random(f"{self.seed}:{number}").shuffle(order)
            for document in order:
                yield [(number, document, first) for first in range(0, self.sizes[document], self.length)]
