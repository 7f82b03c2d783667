"""Targets of language models: next tokens, or masked tokens that a resumed run draws again."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling

from hf_longattn.data.batching import EVALUATION, EpochAwareCollator
from hf_longattn.data.tokenization import IGNORED
from hf_longattn.errors import CheckpointError

MASKED = 0.15
"""Share of the tokens that a masked language model predicts, as in BERT."""


def masked_tokens(ids: Tensor, tokenizer: Any, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids of any shape with a share :data:`MASKED` masked, and labels, which are :data:`.tokenization.IGNORED` elsewhere.

    For evaluations: each chosen token is masked, and none is replaced by a random token. Special tokens are never chosen. At least one
    other token is.
    """
    mask = getattr(tokenizer, "mask_token_id", None)
    if mask is None:
        raise CheckpointError("A masked token's loss needs a tokenizer with a mask token; give the model's own (tokenizer.mask_token).")
    order = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed))
    order = order.to(ids.device).masked_fill(torch.isin(ids, torch.tensor(sorted(tokenizer.all_special_ids), device=ids.device)), 2.0)
    chosen = order < min(1.0, max(MASKED, float(order.min()) + 1e-7))
    return ids.masked_fill(chosen, mask), ids.masked_fill(~chosen, IGNORED)


class RepeatableMasks(DataCollatorForLanguageModeling, EpochAwareCollator):
    """transformers' collator of language models with masks that depend on the seed, on ``epoch`` and on the tokens of the
    batch alone. Resumed runs and other numbers of workers therefore draw the same masks.

    At least one token of a batch is masked. With next-token labels, only padding is ignored. The base class also ignores end tokens if the
    padding token is the end token (GPT-2, Llama).
    """

    def create_rng(self, *args: Any) -> None:
        """Make the generator for the masks of one batch. The base would make one for each process."""
        digest = hashlib.blake2b(self.drawn_from.encode(), digest_size=7).digest()
        self.generator: torch.Generator | None = torch.Generator().manual_seed(int.from_bytes(digest, "big"))

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        passes = [row.pop("epoch") for row in examples if "epoch" in row]  # of segments, through the documents
        if passes and self.epoch != EVALUATION:
            self.epoch = max(passes)
        rows = [list(row["input_ids"]) for row in examples] if self.mlm else []  # nothing is drawn for next tokens
        self.drawn_from = repr((self.seed, self.epoch, rows))
        self.generator = None  # so that the base calls create_rng, if there is a seed
        batch: dict[str, Any] = super().torch_call(examples)
        if not self.mlm:
            real = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
            batch["labels"] = batch["input_ids"].masked_fill(real == 0, IGNORED)
        return batch

    def torch_mask_tokens(self, inputs: Any, special_tokens_mask: Any = None, offset_mapping: Any = None) -> tuple[Any, Any]:
        original = inputs.clone()
        shown, labels = super().torch_mask_tokens(inputs, special_tokens_mask, offset_mapping)
        if not bool((labels != IGNORED).any()):  # a short batch; its loss would be the mean of nothing
            rest = torch.isin(original, torch.tensor(sorted(self.tokenizer.all_special_ids)), invert=True).nonzero()
            if len(rest):
                place = tuple(rest[int(torch.randint(len(rest), (), generator=self.generator))])
                shown[place], labels[place] = self.tokenizer.mask_token_id, original[place]
        return shown, labels


class DataCollatorForPackedText(RepeatableMasks):
    """:class:`RepeatableMasks` for rows that hold several documents. The rows of a batch become one row ``(1, T)`` without padding, with
    ``documents (1, T)``. With next-token labels, the first token of a document is no target."""

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """Rows with input_ids and documents, lists of the same length."""
        ids = [token for row in examples for token in row["input_ids"]]
        batch = super().torch_call([{"input_ids": ids}])
        numbers = torch.tensor([(place, number) for place, row in enumerate(examples) for number in row["documents"]])
        borders = torch.nn.functional.pad((numbers[1:] != numbers[:-1]).any(1), (1, 0), value=True)
        batch.pop("attention_mask", None)
        batch["documents"] = borders.cumsum(0)[None] - 1
        if not self.mlm:
            batch["labels"] = batch["labels"].masked_fill(borders[None], IGNORED)
        return batch
