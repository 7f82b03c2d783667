"""Documents segment by segment, for models that remember: every row of a batch is a stream of documents of its own.

Row r of batch t holds the next segment of the document that the row is reading; where a document ends the row takes the next one that no
row has taken, and ``memory_reset`` says that it begins anew. Samples come row by row and batch by batch, so that ``DataLoader`` makes
the batches, and ``accelerate`` gives process p the same rows ``p·B … (p+1)·B`` of every batch.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from datasets import Dataset
from datasets import IterableDataset as StreamedDataset
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import OptionError

IGNORED = -100
"""The label of a token without loss."""
SHUFFLE_BUFFER = 1000
"""Documents of a stream among which the next one is chosen."""
Sample = dict[str, Tensor]


class SegmentStream(IterableDataset):
    """Segments of tokenised documents, in the order of the rows of a batch.

    Args:
        documents: what can be iterated again and again over mappings with ``input_ids``: a list, a ``datasets`` dataset, or one that is
            streamed (see :func:`tokenised`).
        length: tokens of a segment; shorter ones are padded on the right.
        rows: rows of all processes' batches together, batch size × processes.
        pad_token_id: the padding.
        shuffle: read the documents in another order in every pass, by ``seed``.
        passes: over the documents; ``None`` is without end. At the end of the last pass, rows without a document are padding.

    Each sample has ``input_ids, attention_mask, labels (length,)`` and ``memory_reset ()``, 1 where a document begins.

    Raises:
        OptionError: a length or number of rows below 1, no documents, or several worker processes, which would mix the rows up.
    """

    def __init__(
        self,
        documents: Iterable[Any],
        length: int,
        rows: int,
        *,
        pad_token_id: int = 0,
        shuffle: bool = False,
        seed: int = 0,
        passes: int | None = 1,
    ) -> None:
        if length < 2:
            raise OptionError(f"A segment must have at least 2 tokens, not {length}; for example 512.")
        if rows < 1:
            raise OptionError(f"There must be at least 1 row, not {rows}: the batch size times the number of processes.")
        self.documents, self.length, self.rows = documents, length, rows
        self.pad_token_id, self.shuffle, self.seed, self.passes = pad_token_id, shuffle, seed, passes

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise OptionError(
                f"dataloader_num_workers is {worker.num_workers}, but several workers would mix up the rows of a batch; give 1 or 0."
            )
        documents = self._documents()
        streams: list[Iterator[Sample]] = [iter(()) for _ in range(self.rows)]
        while True:
            batch = []
            for row, stream in enumerate(streams):
                sample = next(stream, None)
                if sample is None:
                    streams[row] = self._segments(next(documents, None))
                    sample = next(streams[row], None)
                batch.append(sample)
            if all(sample is None for sample in batch):
                return
            yield from (self._empty() if sample is None else sample for sample in batch)

    def _documents(self) -> Iterator[list[int]]:
        """Every document's tokens, pass after pass."""
        for number in itertools.count() if self.passes is None else range(self.passes):
            some = False
            for document in self._ordered(number):
                ids = list(document["input_ids"])
                if len(ids) > 1:
                    some = True
                    yield ids
            if not some:
                raise OptionError("There is no document of two tokens or more to read; check the text and its column.")

    def _ordered(self, number: int) -> Iterable[Any]:
        if not self.shuffle:
            return self.documents
        if isinstance(self.documents, StreamedDataset):
            return self.documents.shuffle(seed=self.seed + number, buffer_size=SHUFFLE_BUFFER)
        listed: Any = self.documents if isinstance(self.documents, Dataset) else list(self.documents)
        order = list(range(len(listed)))
        random.Random(self.seed + number).shuffle(order)
        return (listed[index] for index in order)

    def _segments(self, ids: list[int] | None) -> Iterator[Sample]:
        for first in range(0, len(ids), self.length) if ids is not None else ():
            yield self._sample(ids[first : first + self.length], first == 0)  # type: ignore[index]

    def _sample(self, ids: list[int], begins: bool) -> Sample:
        padding = self.length - len(ids)
        return {
            "input_ids": torch.tensor(ids + [self.pad_token_id] * padding),
            "attention_mask": torch.tensor([1] * len(ids) + [0] * padding),
            "labels": torch.tensor(ids + [IGNORED] * padding),
            "memory_reset": torch.tensor(int(begins)),
        }

    def _empty(self) -> Sample:
        """A row that has no document left."""
        return self._sample([], True)


def tokenised(documents: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A ``datasets`` dataset with the column ``text``, whole or streamed, as one with ``input_ids``; a document ends with its end token."""
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer(rows["text"], add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return {"input_ids": [ids if end is None else [*ids, end] for ids in encoded]}

    return documents.map(encode, batched=True, batch_size=200, remove_columns=documents.column_names)


class SegmentCollator:
    """Stacks the samples of a batch; ``mask_tokens``, a masked language model's collator, chooses what it has to predict."""

    def __init__(self, mask_tokens: Callable[[list[dict[str, Any]]], Any] | None = None) -> None:
        self.mask_tokens = mask_tokens

    def __call__(self, samples: list[Sample]) -> dict[str, Tensor]:
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        if self.mask_tokens is None:
            return batch
        masked = self.mask_tokens([{name: sample[name] for name in ("input_ids", "attention_mask")} for sample in samples])
        labels = masked["labels"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        return {**batch, "input_ids": masked["input_ids"], "labels": labels}
