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

if TYPE_CHECKING:  # importing it also imports peft and the Trainer's integrations, which a conversion does not need
    from transformers import TrainingArguments

EVALUATION = -1
"""The epoch of collators for evaluations."""


class EpochAwareCollator:
    """A collator whose random choices depend on ``epoch``, counted from 0.

    The callback :class:`~hf_longattn.training.trainer.SetEpoch` sets the epoch.
    """

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
        """A copy for evaluations, with the epoch :data:`EVALUATION`.

        Its random choices are the same in every evaluation, and others than in training.
        """
        collator = copy.copy(self)
        collator.shared_epoch = torch.tensor(EVALUATION)
        return collator


def shuffled(count: int, seed: int | str) -> list[int]:
    """The numbers ``0 … count - 1``, shuffled by ``seed``."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def seed_of(*values: Any) -> int:
    """A seed that depends only on these values."""
    digest = hashlib.blake2b(repr(values).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def pad_rows(rows: Sequence[Sequence[Any]], fill: int, length: int, *, left: bool = False) -> Tensor:
    """Rows of numbers as a tensor ``(B, length)``, padded with ``fill`` on the right, or on the ``left``."""
    padded = []
    for row in map(torch.as_tensor, rows):
        gap = torch.full((length - len(row), *row.shape[1:]), fill, dtype=row.dtype)
        padded.append(torch.cat([gap, row] if left else [row, gap]))
    return torch.stack(padded)


@dataclass
class DataCollatorWithGlobals(DataCollatorWithPadding):
    """transformers' ``DataCollatorWithPadding`` that also pads two columns with a value per token.

    The columns are ``labels``, padded with -100, and ``global_attention_mask``, in which 1 is a global token, padded
    with 0. If the model's config defines the global tokens (question answering), the mask is not needed.
    """

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """A padded batch ``(B, N)``."""
        rows = [dict(row) for row in features]
        columns = {}  # taken out of the rows, because the base class does not pad them
        for name in ("global_attention_mask", "labels"):
            if hasattr(rows[0].get(name), "__len__"):
                columns[name] = [row.pop(name) for row in rows]
        batch = dict(super().__call__(rows))
        length, left = batch["input_ids"].shape[1], self.tokenizer.padding_side == "left"
        for name, values in columns.items():
            fill = IGNORED if name == "labels" else 0
            batch[name] = pad_rows(values, fill, length, left=left)
        return batch


def packed(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows joined to one row: each column as a tensor ``(1, T)``, without ``attention_mask``.

    ``documents (1, T)`` is added: for each token, the number of the row from which it comes. With it, a Long model
    restarts positions at each row, and no mechanism lets a token see other rows.
    """
    names = [name for name in rows[0] if name != "attention_mask"]
    batch = {name: torch.cat([torch.as_tensor(row[name]) for row in rows])[None] for name in names}
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return {**batch, "documents": torch.repeat_interleave(torch.arange(len(rows)), lengths)[None]}


@dataclass(kw_only=True)
class DataCollatorWithPacking:
    """Packed batches: one row ``(1, T)`` without padding, as by transformers' ``DataCollatorWithFlattening``.

    The batch has ``documents (1, T)`` instead of ``position_ids``, because model types count positions differently
    (RoBERTa from 2). Other columns with a value per token (labels, token_type_ids, global_attention_mask) are
    concatenated. If each document has a single label, the batch has ``labels (B,)``, and ``lengths (B,)`` with the
    number of tokens of each document.

    Args:
        shifted: True if the model predicts next tokens. The first token of each document then has the label -100.
            False if each label belongs to its own token (token classification, masked tokens).
    """

    pack = True
    shifted: bool = False

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """A packed batch ``(1, T)``."""
        rows = [dict(row) for row in features]
        document_labels: dict[str, Tensor] = {}
        if "labels" in rows[0] and not hasattr(rows[0]["labels"], "__len__"):
            document_labels["labels"] = torch.tensor([row.pop("labels") for row in rows])
            document_labels["lengths"] = torch.tensor([len(row["input_ids"]) for row in rows])
        batch = packed(rows)
        if self.shifted:
            changes = batch["documents"][:, 1:] != batch["documents"][:, :-1]
            starts = torch.nn.functional.pad(changes, (1, 0), value=True)
            batch["labels"] = batch.get("labels", batch["input_ids"]).masked_fill(starts, IGNORED)
        return {**batch, **document_labels}


@contextmanager
def first_tokens(model: PreTrainedModel, lengths: Tensor) -> Iterator[None]:
    """Within the context, a head gets the first token of each document of a packed row ``(1, T)``.

    ``lengths (B,)`` are the numbers of tokens of the documents.
    """
    starts = lengths.cumsum(0) - lengths

    def select(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *others = args
        return states[0, starts][:, None], *others  # (B, 1, D): B rows of one token

    module: Any = pooling_module(model)
    handle = module.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def pooling_module(model: PreTrainedModel) -> nn.Module | None:
    """The module that takes the hidden states of all tokens, and reads the first one: a pooler or classifier.

    ``None`` if there is no such module, because the model itself selects the first token.
    """
    for owner, name in ((model.base_model, "pooler"), (model, "pooler"), (model, "classifier")):
        module = getattr(owner, name, None)
        if isinstance(module, nn.Linear):  # it does not select a token
            return None
        if isinstance(module, nn.Module):
            return module
    return None


def chosen_packing(
    model: PreTrainedModel, wanted: bool | None, args: TrainingArguments, head_problem: str | None = None
) -> bool:
    """Whether to pack several documents into one row.

    Args:
        wanted: value of ``--packing``; ``None`` = pack if model and arguments allow it.
        head_problem: a sentence that says why the model's head does not allow it; ``None`` = the head allows it.

    Raises:
        OptionError: packing is wanted, but not possible.
    """
    problem = None
    if not isinstance(model, LongAttentionMixin) or attention_implementation(model.config) != BACKEND:
        problem = f"A {type(model).__name__} does not keep documents of one row apart; convert it (longattn convert)."
    elif not model.packs_documents:
        problem = f"A {type(model).__name__} reads one document per row."
    elif args.torch_compile:
        problem = "A compiled model takes no packed documents."
    elif args.n_gpu > 1:
        problem = "Several GPUs in one process (DataParallel) split rows; use accelerate launch."
    else:
        for module in model.modules():
            if isinstance(module, LongAttentionMixin) and hasattr(module, "recursion"):
                problem = problem or refusal_of_documents(module, {})
    problem = head_problem or problem
    if wanted and problem:
        raise OptionError(f"--packing cannot be used here; leave it out. {problem}")
    return wanted is not False and not problem


class EpochSampler(Sampler[Any]):
    """A sampler whose order depends on the epoch. Its attributes are read by accelerate and transformers."""

    epoch = 0
    batch_size = None  # batches differ in size
    drop_last = False

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class TokenBudget(EpochSampler):
    """A sampler of batches with a limited number of tokens and rows of similar length.

    The rows of a batch depend on the seed, and the order of the batches on seed and epoch.

    Args:
        lengths: number of tokens of each row.
        budget: maximum tokens of a batch. A longer row is a batch of its own.
        padded: how the tokens of a batch are counted. True = the longest row times the number of rows; False = the sum
            of the rows, for packed batches.
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
            if padded:  # this row is the longest of the batch, because rows come in ascending order
                total = lengths[row] * (len(self.batches[-1]) + 1)
            if self.batches[-1] and total > budget:
                self.batches.append([])
                total = lengths[row]
            self.batches[-1].append(row)
        while len(self.batches) % processes:
            largest = max(self.batches, key=len)
            half = len(largest) // 2
            self.batches.append(largest[half:])
            if half:  # the largest batch is split; a batch of a single row is repeated
                del largest[half:]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter([self.batches[number] for number in shuffled(len(self.batches), f"{self.seed}:{self.epoch}")])


MASKED = 0.15
"""Share of the tokens that a masked language model predicts, as in BERT."""


def masked_tokens(ids: Tensor, tokenizer: Any, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mask a share :data:`MASKED` of the tokens, for an evaluation.

    Chosen tokens are always replaced by the mask token, never by a random token. Special tokens are not chosen. At
    least one other token is chosen.

    Args:
        ids: token ids of any shape.

    Returns:
        The masked token ids, and labels, which are -100 for tokens that are not masked.
    """
    mask = getattr(tokenizer, "mask_token_id", None)
    if mask is None:
        raise CheckpointError(
            "The loss of masked tokens needs a tokenizer with a mask token; give the model's tokenizer, or set "
            "tokenizer.mask_token."
        )
    special = torch.tensor(sorted(tokenizer.all_special_ids), device=ids.device)
    draws = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)).to(ids.device)
    draws = draws.masked_fill(torch.isin(ids, special), 2.0)
    # A token is chosen if its draw is below the share. The token with the lowest draw is always chosen.
    chosen = draws < min(1.0, max(MASKED, float(draws.min()) + 1e-7))
    return ids.masked_fill(chosen, mask), ids.masked_fill(~chosen, IGNORED)


class RepeatableMasks(DataCollatorForLanguageModeling, EpochAwareCollator):
    """transformers' language-modelling collator with repeatable masks.

    Masks depend only on the seed, ``epoch`` and the tokens of the batch. A resumed run therefore draws the same masks,
    with any number of workers. At least one token of a batch is masked.

    If the labels are next tokens, only padding is ignored. The base class would also ignore end tokens if the padding
    token is the end token (GPT-2, Llama).
    """

    def create_rng(self, *args: Any) -> None:
        """Make a generator for the masks of one batch. The base class would make one generator per process."""
        self.generator: torch.Generator | None = torch.Generator().manual_seed(self.batch_seed)

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """The batch of the base class. Segments of documents have their epoch as ``epoch``."""
        epochs = [row.pop("epoch") for row in examples if "epoch" in row]
        if epochs and self.epoch != EVALUATION:
            self.epoch = max(epochs)
        tokens = [list(row["input_ids"]) for row in examples] if self.mlm else []  # only masks are drawn
        self.batch_seed = seed_of(self.seed, self.epoch, tokens)
        self.generator = None  # if there is a seed, the base class then calls create_rng
        batch: dict[str, Any] = super().torch_call(examples)
        if not self.mlm:
            real = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
            batch["labels"] = batch["input_ids"].masked_fill(real == 0, IGNORED)
        return batch

    def torch_mask_tokens(
        self, inputs: Any, special_tokens_mask: Any = None, offset_mapping: Any = None
    ) -> tuple[Any, Any]:
        """Masked token ids and labels, as in the base class. If no token is masked, one is drawn.

        The loss of a batch without labels would be NaN.
        """
        original = inputs.clone()
        masked, labels = super().torch_mask_tokens(inputs, special_tokens_mask, offset_mapping)
        if not bool((labels != IGNORED).any()):
            special = torch.tensor(sorted(self.tokenizer.all_special_ids))
            positions = torch.isin(original, special, invert=True).nonzero()
            if len(positions):
                index = tuple(positions[int(torch.randint(len(positions), (), generator=self.generator))])
                masked[index] = self.tokenizer.mask_token_id
                labels[index] = original[index]
        return masked, labels


class DataCollatorForPackedText(RepeatableMasks):
    """:class:`RepeatableMasks` for rows with several documents, which become one row ``(1, T)`` without padding.

    The batch has ``documents (1, T)``, the number of each token's document. If the labels are next tokens, the first
    token of a document has the label -100.
    """

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """Collate rows with ``input_ids`` and ``documents``, two lists of the same length."""
        ids = [token for row in examples for token in row["input_ids"]]
        batch = super().torch_call([{"input_ids": ids}])
        batch.pop("attention_mask", None)
        # A document starts where the number of the row or of the document changes.
        row_and_document = torch.tensor(
            [(row, number) for row, example in enumerate(examples) for number in example["documents"]]
        )
        changes = (row_and_document[1:] != row_and_document[:-1]).any(1)
        starts = torch.nn.functional.pad(changes, (1, 0), value=True)
        batch["documents"] = starts.cumsum(0)[None] - 1
        if not self.mlm:
            batch["labels"] = batch["labels"].masked_fill(starts[None], IGNORED)
        return batch
