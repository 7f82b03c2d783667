"""Batches without padding: documents packed into one row, which every mechanism keeps apart, and batches of a number of tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import DataCollatorWithFlattening, PreTrainedModel, TrainingArguments

from hf_longattn.backend import BACKEND
from hf_longattn.modeling.mixin import LongAttentionMixin
from hf_longattn.private_apis import attention_implementation


def packed(rows: Sequence[dict[str, Any]], padding: dict[str, int] | None = None) -> dict[str, Tensor]:
    """One row ``(1, T)`` of all columns, and ``documents (1, T)``, the number of each token's row.

    A Long model restarts positions with each document by itself, and no mechanism lets one see another. ``attention_mask`` is left out.
    """
    names = [name for name in rows[0] if name != "attention_mask"]
    batch = {name: torch.cat([torch.as_tensor(row[name]) for row in rows])[None] for name in names}
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return {**batch, "documents": torch.repeat_interleave(torch.arange(len(rows)), lengths)[None]}


class DataCollatorWithPacking(DataCollatorWithFlattening):
    """transformers' ``DataCollatorWithFlattening`` for Long models: ``documents (1, T)`` in place of ``position_ids``, so that each family
    counts positions as it does (RoBERTa from 2), and the other columns of ``(T,)`` (token_type_ids, global_attention_mask) are kept.

    Args:
        shifted: labels are those of next tokens, so that the first token of a document is no target. False = labels of the tokens
            themselves (token classification, masked tokens).
    """

    def __init__(self, *, shifted: bool = False) -> None:
        super().__init__(return_position_ids=False)
        self.shifted = shifted

    def __call__(self, features: list[dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
        rows = [{name: value for name, value in row.items() if name != "length"} for row in features]
        batch: dict[str, Any] = packed(rows)
        if self.shifted:
            labels = batch.get("labels", batch["input_ids"]).clone()
            starts = torch.nn.functional.pad(batch["documents"][:, 1:] != batch["documents"][:, :-1], (1, 0), value=True)
            batch["labels"] = labels.masked_fill(starts, self.separator_id)
        return batch


def packing_refusal(model: PreTrainedModel, args: TrainingArguments) -> str | None:
    """Why ``model`` cannot be trained on packed rows; ``None`` where it can."""
    if not isinstance(model, LongAttentionMixin) or attention_implementation(model.config) != BACKEND:
        return f"{type(model).__name__} does not keep documents of one row apart; convert it (longattn convert)"
    bases = [module for module in model.modules() if isinstance(module, LongAttentionMixin) and hasattr(module, "recursion")]
    refusals = [found for base in bases if (found := base.refusal_of_documents({})) is not None]
    if refusals:
        return refusals[0]
    if args.torch_compile:
        return "a compiled model takes no packed documents"
    return "several GPUs in one process (DataParallel) split rows; use accelerate launch" if args.n_gpu > 1 else None


class TokenBudget(Sampler[list[int]]):
    """Batches of rows of similar length that hold at most a number of tokens, in an order that depends on the seed and the epoch.

    Args:
        lengths: tokens of each row.
        budget: tokens of a batch; a longer row is a batch alone.
        seed: of the order.
        padded: a batch costs its longest row times its rows; False = the sum of its rows (packed).
        processes: the number of batches is a multiple of it, so that all processes take as many steps.
    """

    def __init__(self, lengths: Sequence[int], budget: int, seed: int = 0, *, padded: bool = False, processes: int = 1) -> None:
        self.seed, self.epoch, self.batch_size, self.drop_last = seed, 0, None, False
        order = list(range(len(lengths)))
        random.Random(seed).shuffle(order)
        order.sort(key=lambda row: lengths[row])
        self.batches: list[list[int]] = [[]]
        total = 0
        for row in order:
            total = lengths[row] * (len(self.batches[-1]) + 1) if padded else total + lengths[row]
            if self.batches[-1] and total > budget:
                self.batches.append([])
                total = lengths[row]
            self.batches[-1].append(row)
        while len(self.batches) % processes:  # split the largest batch, or repeat one of a single row
            largest = max(self.batches, key=len)
            half = len(largest) // 2
            self.batches.append(largest[half:] if half else list(largest))
            if half:
                del largest[half:]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(len(self.batches)))
        random.Random(f"{self.seed}:{self.epoch}").shuffle(order)
        return iter([self.batches[place] for place in order])

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before every epoch."""
        self.epoch = epoch
