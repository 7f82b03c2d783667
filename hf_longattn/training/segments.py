"""Documents read segment by segment, for models with a memory: every row of a batch is a separate stream of documents.

Row r of batch t holds the next segment of the document that the row is reading; at the end of a document the row takes the next unread
one, and ``memory_reset`` is 1. Samples come row by row and batch by batch, so that ``DataLoader`` makes the batches, and
``accelerate`` gives process p the same rows ``p·B … (p+1)·B`` of every batch. :class:`SegmentTrainer` carries each row's memory from batch
to batch and saves it with every checkpoint.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets import IterableDataset as StreamedDataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.modeling.inference import evaluating
from hf_longattn.training.trainer import TimedTrainer

IGNORED = -100
"""The label of a token without loss."""
SHUFFLE_BUFFER = 1000
"""Documents of a stream from which the next one is drawn."""
Sample = dict[str, Tensor]


class SegmentStream(IterableDataset):
    """Segments of tokenised documents, in the order of the rows of a batch.

    Args:
        documents: mappings with ``input_ids`` that can be iterated repeatedly: a list, or a ``datasets`` dataset, streamed or not (see
            :func:`tokenised`).
        length: tokens of a segment; shorter ones are padded on the right.
        rows: batch size × processes.
        pad_token_id: the padding.
        shuffle: read the documents in a different order in every pass, by ``seed``.
        passes: over the documents; ``None`` = endless. At the end of the last pass, rows without a document are padding.

    Each sample has ``input_ids, attention_mask, labels (length,)`` and ``memory_reset ()``, 1 where a document begins.

    Raises:
        OptionError: a length or number of rows that is too small, no documents, or several worker processes, which would mix up the rows.
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
        """The documents' tokens, pass after pass."""
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
        """For a row without further documents."""
        return self._sample([], True)


def tokenised(documents: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Map the column ``text`` of a ``datasets`` dataset, streamed or not, to ``input_ids``; every document ends with the end token."""
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer(rows["text"], add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return {"input_ids": [ids if end is None else [*ids, end] for ids in encoded]}

    return documents.map(encode, batched=True, batch_size=200, remove_columns=documents.column_names)


class SegmentCollator:
    """Stacks samples; ``mask_tokens``, a collator for masked language modelling, chooses the tokens to predict."""

    def __init__(self, mask_tokens: Callable[[list[dict[str, Any]]], Any] | None = None) -> None:
        self.mask_tokens = mask_tokens

    def __call__(self, samples: list[Sample]) -> dict[str, Tensor]:
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        if self.mask_tokens is None:
            return batch
        masked = self.mask_tokens([{name: sample[name] for name in ("input_ids", "attention_mask")} for sample in samples])
        labels = masked["labels"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        return {**batch, "input_ids": masked["input_ids"], "labels": labels}


class SegmentTrainer(TimedTrainer):
    """Trains a Long model on a :class:`SegmentStream`: gradients stay within a batch, the memory carries over.

    The stream must have batch size × processes rows. ``evaluate`` reads the whole evaluation stream in every process.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.memory: Any = None
        self.control: Any

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:  # Trainer's signature
        if self.memory is None:
            self.memory = self.accelerator.unwrap_model(model).new_memory()
        inputs = {**inputs, "memory": self.memory}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        self.memory = outputs["memory"]
        if not bool((self._predicted(inputs["labels"]) != IGNORED).any()):  # this process's rows have no document left
            loss = outputs["logits"].sum() * 0.0
        return (loss, outputs) if return_outputs else loss

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As Trainer's; the memory is resumed with the data."""
        self.memory = None
        if isinstance(resume_from_checkpoint, str | Path):
            self._load_memory(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The mean loss of all tokens of a stream."""
        stream = self.eval_dataset if eval_dataset is None else eval_dataset
        assert isinstance(stream, SegmentStream)
        model = self.accelerator.unwrap_model(self.model)
        memory, total, count = model.new_memory(), 0.0, 0
        collate = self.data_collator if isinstance(self.data_collator, SegmentCollator) else SegmentCollator()
        with evaluating(model), torch.no_grad(), self.compute_loss_context_manager():
            for batch in DataLoader(stream, batch_size=stream.rows, collate_fn=collate):
                batch = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
                outputs = model(**batch, memory=memory)
                memory = outputs["memory"]
                items = int((self._predicted(batch["labels"]) != IGNORED).sum())
                if items:
                    total, count = total + float(outputs["loss"]) * items, count + items
        metrics = {f"{metric_key_prefix}_loss": total / max(1, count)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _predicted(self, labels: Tensor) -> Tensor:
        """The labels that the loss averages over: without masking, the first token is not predicted."""
        masks = isinstance(self.data_collator, SegmentCollator) and self.data_collator.mask_tokens is not None
        return labels if masks else labels[..., 1:]

    def memory_file(self, checkpoint: Path) -> Path:
        """This process's file in a checkpoint."""
        return checkpoint / f"segment_memory_{self.args.process_index}.safetensors"

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's; a checkpoint gets every process's memory before trainer_state.json, with which it is complete."""
        super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir is not None:
            self.save_memory(Path(output_dir))

    def save_memory(self, checkpoint: Path) -> None:
        """Write this process's memory next to the optimiser's state."""
        if self.memory is not None:
            checkpoint.mkdir(parents=True, exist_ok=True)
            tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.memory.state_dict().items()}
            save_file(tensors, self.memory_file(checkpoint))

    def _load_memory(self, checkpoint: Path) -> None:
        file = self.memory_file(checkpoint)
        if not file.is_file():
            raise CheckpointError(
                f"{str(checkpoint)!r} has no {file.name}: it was not written by a training in segments with {self.args.process_index + 1} "
                "or more processes; start again, or resume with as many processes as before"
            )
        self.memory = self.accelerator.unwrap_model(self.model).new_memory()
        self.memory.load_state_dict({name: tensor.to(self.args.device) for name, tensor in load_file(file).items()})
