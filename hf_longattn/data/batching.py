"""Collators and samplers: padded or packed batches, batches by number of tokens, and masks for language models."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding, PreTrainedModel

from ..errors import CheckpointError, OptionError
from ..modeling.backend import BACKEND
from ..modeling.family.long_config import attention_implementation
from ..modeling.mixin import LongAttentionMixin
from ..modeling.packed_documents import refusal_of_documents
from .tokenization import IGNORED

if TYPE_CHECKING:  # it imports peft and the Trainer's integrations, which no conversion needs
    from transformers import TrainingArguments

EVALUATION = -1
"""Epoch number in evaluations."""


class EpochAwareCollator:
    """A collator with random choices by ``epoch`` (from 0). :class:`~hf_longattn.training.trainer.SetEpoch` sets the
    epoch."""

    shared_epoch: Tensor

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        collator: Any = super().__new__(cls)
        collator.shared_epoch = torch.zeros((), dtype=torch.long).share_memory_()  # shared with the worker processes
        return collator

    @property
    def epoch(self) -> int:
        return int(self.shared_epoch)

    @epoch.setter
    def epoch(self, number: int) -> None:
        self.shared_epoch.fill_(number)

    def for_evaluation(self) -> Any:
        """A copy for evaluations. Its random choices, if any, are the same in every evaluation and differ from
        training."""
        collator = copy.copy(self)
        collator.shared_epoch = torch.tensor(EVALUATION)
        return collator


def shuffled(count: int, seed: int | str) -> list[int]:
    """The numbers ``0 … count - 1``, shuffled by ``seed``."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def seed_of(*values: Any) -> int:
    """A seed that depends on these values alone."""
    digest = hashlib.blake2b(repr(values).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def pad_rows(rows: Sequence[Sequence[Any]], fill: int, length: int, *, left: bool = False) -> Tensor:
    """``(B, length)`` of rows of numbers, padded with ``fill``."""
    padded = []
    for row in map(torch.as_tensor, rows):
        gap = torch.full((length - len(row), *row.shape[1:]), fill, dtype=row.dtype)
        padded.append(torch.cat([gap, row] if left else [row, gap]))
    return torch.stack(padded)


@dataclass
class DataCollatorWithGlobals(DataCollatorWithPadding):
    """transformers' ``DataCollatorWithPadding`` for rows that may have ``labels`` of tokens or a
    ``global_attention_mask``.

    Labels are padded with -100. In the mask, 1 = global; padding is never global. If the config defines the global
    tokens (question answering), the column is not needed.
    """

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [dict(row) for row in features]
        fills = {
            name: fill
            for name, fill in (("global_attention_mask", 0), ("labels", IGNORED))
            if hasattr(rows[0].get(name), "__len__")
        }
        lists = {name: [row.pop(name) for row in rows] for name in fills}
        batch = dict(super().__call__(rows))
        size = {"length": batch["input_ids"].shape[1], "left": self.tokenizer.padding_side == "left"}
        return {**batch, **{name: pad_rows(values, fills[name], **size) for name, values in lists.items()}}


def packed(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """All columns as one row ``(1, T)``, with ``documents (1, T)``, the number of each token's row.

    A Long model restarts positions at each document, and no mechanism lets documents see each other.
    ``attention_mask`` is left out.
    """
    names = [name for name in rows[0] if name != "attention_mask"]
    batch = {name: torch.cat([torch.as_tensor(row[name]) for row in rows])[None] for name in names}
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return {**batch, "documents": torch.repeat_interleave(torch.arange(len(rows)), lengths)[None]}


@dataclass(kw_only=True)
class DataCollatorWithPacking:
    """Packed batches: one row ``(1, T)`` without padding, as by transformers' ``DataCollatorWithFlattening``.

    It adds ``documents (1, T)`` instead of ``position_ids``, because families count positions differently (RoBERTa
    from 2). Other columns with a value per token (labels, token_type_ids, global_attention_mask) are concatenated. If
    each document has one label, ``(B,)``, the batch also has ``lengths (B,)``.

    Args:
        shifted: True = labels are the next tokens, so the first token of a document is no target. False: each label
            belongs to its own token (token classification, masked tokens).
    """

    pack = True
    shifted: bool = False

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [dict(row) for row in features]
        targets: dict[str, Tensor] = {}
        if "labels" in rows[0] and not hasattr(rows[0]["labels"], "__len__"):
            targets["labels"] = torch.tensor([row.pop("labels") for row in rows])
            targets["lengths"] = torch.tensor([len(row["input_ids"]) for row in rows])
        batch = packed(rows)
        if self.shifted:
            starts = torch.nn.functional.pad(
                batch["documents"][:, 1:] != batch["documents"][:, :-1], (1, 0), value=True
            )
            batch["labels"] = batch.get("labels", batch["input_ids"]).masked_fill(starts, IGNORED)
        return {**batch, **targets}


@contextmanager
def first_tokens(model: PreTrainedModel, lengths: Tensor) -> Iterator[None]:
    """Within the context, the pooling of a packed row ``(1, T)`` reads the first token of each document, by
    ``lengths (B,)``."""
    starts = lengths.cumsum(0) - lengths
    module: Any = pooling_module(model)
    handle = module.register_forward_pre_hook(lambda _, args: (args[0][0, starts][:, None], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def pooling_module(model: PreTrainedModel) -> nn.Module | None:
    """The module that pools hidden states by their first token; ``None`` if the model selects the token itself."""
    for owner, name in ((model.base_model, "pooler"), (model, "pooler"), (model, "classifier")):
        module = getattr(owner, name, None)
        if isinstance(module, nn.Linear):
            return None
        if isinstance(module, nn.Module):
            return module
    return None


def chosen_packing(
    model: PreTrainedModel, wanted: bool | None, args: TrainingArguments, refusal: str | None = None
) -> bool:
    """Whether to pack: ``wanted``, or by default whether model and arguments allow it."""
    why = None
    if not isinstance(model, LongAttentionMixin) or attention_implementation(model.config) != BACKEND:
        why = f"A {type(model).__name__} does not keep documents of one row apart; convert it (longattn convert)."
    elif not model.packs_documents:
        why = f"A {type(model).__name__} reads one document per row."
    elif args.torch_compile:
        why = "A compiled model takes no packed documents."
    elif args.n_gpu > 1:
        why = "Several GPUs in one process (DataParallel) split rows; use accelerate launch."
    else:
        bases = (module for module in model.modules() if isinstance(module, LongAttentionMixin))
        refusals = (refusal_of_documents(base, {}) for base in bases if hasattr(base, "recursion"))
        why = next(filter(None, refusals), None)
    why = refusal or why
    if wanted and why:
        raise OptionError(f"--packing cannot be used here; leave it out. {why}")
    return wanted is not False and why is None


class EpochSampler(Sampler[Any]):
    """A sampler whose order depends on the epoch."""

    epoch, batch_size, drop_last = 0, None, False

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class TokenBudget(EpochSampler):
    """A sampler of batches with a limited number of tokens and rows of similar length. The order depends on seed and
    epoch.

    Args:
        budget: maximum tokens of a batch. A longer row gets its own batch.
        padded: a batch costs its longest row times its rows; False = the sum of its rows (packed).
        processes: number of processes. The number of batches is a multiple of it, so that all processes take equally
            many steps.
    """

    def __init__(
        self, lengths: Sequence[int], budget: int, seed: int = 0, *, padded: bool = False, processes: int = 1
    ) -> None:
        self.seed = seed
        order = sorted(shuffled(len(lengths), seed), key=lambda row: lengths[row])
        self.batches: list[list[int]] = [[]]
        total = 0
        for row in order:
            total += lengths[row]
            if padded:  # rows come in ascending order, so this one is the longest
                total = lengths[row] * (len(self.batches[-1]) + 1)
            if self.batches[-1] and total > budget:
                self.batches.append([])
                total = lengths[row]
            self.batches[-1].append(row)
        while len(self.batches) % processes:  # split the largest batch, or repeat it if it has a single row
            largest = max(self.batches, key=len)
            half = len(largest) // 2
            self.batches.append(largest[half:])
            if half:
                del largest[half:]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter([self.batches[number] for number in shuffled(len(self.batches), f"{self.seed}:{self.epoch}")])


MASKED = 0.15
"""Share of the tokens that a masked language model predicts, as in BERT."""


def masked_tokens(ids: Tensor, tokenizer: Any, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mask a share :data:`MASKED` of the tokens. Returns token ids and labels, :data:`.tokenization.IGNORED` where
    nothing is masked.

    For evaluations: no token is replaced by a random one. Special tokens are never masked, and at least one other
    token is.
    """
    mask = getattr(tokenizer, "mask_token_id", None)
    if mask is None:
        raise CheckpointError(
            "A masked token's loss needs a tokenizer with a mask token; give the model's own (tokenizer.mask_token)."
        )
    order = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed))
    order = order.to(ids.device).masked_fill(
        torch.isin(ids, torch.tensor(sorted(tokenizer.all_special_ids), device=ids.device)), 2.0
    )
    chosen = order < min(1.0, max(MASKED, float(order.min()) + 1e-7))
    return ids.masked_fill(chosen, mask), ids.masked_fill(~chosen, IGNORED)


class RepeatableMasks(DataCollatorForLanguageModeling, EpochAwareCollator):
    """transformers' language-modelling collator with repeatable masks.

    Masks depend only on the seed, ``epoch`` and the tokens of the batch. Resumed runs draw the same masks, with any
    number of workers.

    At least one token of a batch is masked. With next-token labels, only padding is ignored. The base class also
    ignores end tokens if the padding token is the end token (GPT-2, Llama).
    """

    def create_rng(self, *args: Any) -> None:
        """Make a generator for the masks of one batch. The base class would make one generator per process."""
        self.generator: torch.Generator | None = torch.Generator().manual_seed(self.batch_seed)

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        # the pass over the documents that a segment belongs to
        passes = [row.pop("epoch") for row in examples if "epoch" in row]
        if passes and self.epoch != EVALUATION:
            self.epoch = max(passes)
        rows = [list(row["input_ids"]) for row in examples] if self.mlm else []  # next-token labels need no draw
        self.batch_seed = seed_of(self.seed, self.epoch, rows)
        self.generator = None  # makes the base call create_rng if there is a seed
        batch: dict[str, Any] = super().torch_call(examples)
        if not self.mlm:
            real = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
            batch["labels"] = batch["input_ids"].masked_fill(real == 0, IGNORED)
        return batch

    def torch_mask_tokens(
        self, inputs: Any, special_tokens_mask: Any = None, offset_mapping: Any = None
    ) -> tuple[Any, Any]:
        original = inputs.clone()
        shown, labels = super().torch_mask_tokens(inputs, special_tokens_mask, offset_mapping)
        if not bool((labels != IGNORED).any()):  # in a short batch; without a label, its loss would be NaN
            rest = torch.isin(original, torch.tensor(sorted(self.tokenizer.all_special_ids)), invert=True).nonzero()
            if len(rest):
                index = tuple(rest[int(torch.randint(len(rest), (), generator=self.generator))])
                shown[index], labels[index] = self.tokenizer.mask_token_id, original[index]
        return shown, labels


class DataCollatorForPackedText(RepeatableMasks):
    """:class:`RepeatableMasks` for rows that hold several documents. The rows of a batch become one row ``(1, T)``
    without padding, with ``documents (1, T)``. With next-token labels, the first token of a document is no target."""

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """Collate rows with ``input_ids`` and ``documents``, two lists of the same length."""
        ids = [token for row in examples for token in row["input_ids"]]
        batch = super().torch_call([{"input_ids": ids}])
        numbers = torch.tensor(
            [(row, number) for row, example in enumerate(examples) for number in example["documents"]]
        )
        borders = torch.nn.functional.pad((numbers[1:] != numbers[:-1]).any(1), (1, 0), value=True)
        batch.pop("attention_mask", None)
        batch["documents"] = borders.cumsum(0)[None] - 1
        if not self.mlm:
            batch["labels"] = batch["labels"].masked_fill(borders[None], IGNORED)
        return batch
