"""Documents read segment by segment, for models with a memory: every row of a batch is a separate stream of documents.

Row r of batch t holds the next segment of the document that the row is reading; at the end of a document the row takes the next unread
one, and ``memory_reset`` is 1. Samples come row by row and batch by batch, so that ``DataLoader`` makes the batches, and
``accelerate`` gives process p the same rows ``p·B … (p+1)·B`` of every batch.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from hf_longattn.data.masking import RepeatableMasks
from hf_longattn.data.tokenization import IGNORED
from hf_longattn.errors import OptionError

Sample = dict[str, Tensor]


class SegmentStream(IterableDataset):
    """Segments of tokenised documents, in the order of the rows of a batch.

    Args:
        documents: rows with ``input_ids``; see :func:`.tokenization.to_documents`.
        length: tokens of a segment; shorter ones are padded on the right.
        rows: batch size × processes.
        pad_token_id: the padding.
        shuffle: read the documents in a different order in every epoch, by ``seed``.
        epochs: ``None`` = endless. At the end of the last epoch, rows without a document are padding.

    Each sample has ``input_ids, attention_mask, labels (length,)``, ``memory_reset ()``, 1 where a document begins, and ``epoch ()``.
    With n worker processes, each makes every n-th batch.
    """

    def __init__(
        self,
        documents: Sequence[Any] | Any,
        length: int,
        rows: int,
        *,
        pad_token_id: int = 0,
        shuffle: bool = False,
        seed: int = 0,
        epochs: int | None = 1,
    ) -> None:
        self.documents, self.length, self.rows = documents, length, rows
        self.pad_token_id, self.shuffle, self.seed, self.epochs = pad_token_id, shuffle, seed, epochs

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        first, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number, batch in enumerate(self._batches()):
            if number % workers == first:  # DataLoader takes batches from its workers in turn
                yield from batch

    def _batches(self) -> Iterator[list[Sample]]:
        """The samples of all rows, batch by batch."""
        documents = self._documents()
        streams: list[Iterator[Sample]] = [iter(()) for _ in range(self.rows)]
        while True:
            batch: list[Sample | None] = []
            for row, stream in enumerate(streams):
                sample = next(stream, None)
                if sample is None:
                    streams[row] = self._segments(*next(documents, (0, [])))
                    sample = next(streams[row], None)
                batch.append(sample)
            if all(sample is None for sample in batch):
                return
            yield [self._sample([], True) if sample is None else sample for sample in batch]

    def _documents(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the number of the epoch and the tokens of a document.

        Raises:
            OptionError: no document has two tokens.
        """
        for number in itertools.count() if self.epochs is None else range(self.epochs):
            order, has_document = list(range(len(self.documents))), False
            if self.shuffle:
                random.Random(f"{self.seed}:{number}").shuffle(order)
            for place in order:
                ids = list(self.documents[place]["input_ids"])
                if len(ids) > 1:
                    has_document = True
                    yield number, ids
            if not has_document:
                raise OptionError("There is no document of two tokens or more to read; check the text and its column.")

    def _segments(self, number: int, ids: list[int]) -> Iterator[Sample]:
        for first in range(0, len(ids), self.length):
            yield self._sample(ids[first : first + self.length], first == 0, number)

    def _sample(self, ids: list[int], begins: bool, number: int = 0) -> Sample:
        padding = self.length - len(ids)
        return {
            "input_ids": torch.tensor(ids + [self.pad_token_id] * padding),
            "attention_mask": torch.tensor([1] * len(ids) + [0] * padding),
            "labels": torch.tensor(ids + [IGNORED] * padding),
            "memory_reset": torch.tensor(int(begins)),
            "epoch": torch.tensor(number),
        }


class SegmentCollator:
    """Stacks samples; ``masks`` chooses the tokens that a masked language model predicts."""

    def __init__(self, masks: RepeatableMasks | None = None) -> None:
        self.masks = masks

    def for_evaluation(self) -> SegmentCollator:
        """A copy with the same masks in every evaluation."""
        return SegmentCollator(None if self.masks is None else self.masks.for_evaluation())

    def __call__(self, samples: list[Sample]) -> dict[str, Tensor]:
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        epoch = batch.pop("epoch", None)
        if self.masks is None:
            return batch
        if epoch is not None and self.masks.epoch >= 0:
            self.masks.epoch = int(epoch.max())
        masked = self.masks([{name: sample[name] for name in ("input_ids", "attention_mask")} for sample in samples])
        return {**batch, "input_ids": masked["input_ids"], "labels": masked["labels"].masked_fill(batch["attention_mask"] == 0, IGNORED)}
