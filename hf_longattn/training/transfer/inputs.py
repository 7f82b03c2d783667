"""Training inputs as an endless stream, and the same held-out inputs for every measurement."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch.utils.data
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from hf_longattn.training.lm_data import special_tokens
from hf_longattn.training.transfer.settings import TransferSettings

MIXED_TOKENS = 2**18
"""Tokens among whose inputs the next one is drawn, so that a batch does not come from one document."""
Batch = Mapping[str, Tensor]
Input = dict[str, list[int]]


def collator(tokenizer: PreTrainedTokenizerBase, objective: str, length: int, settings: TransferSettings) -> Any:
    """Masks (mlm) or copies (clm) the tokens for labels, and pads every batch to ``length``, so that processes can share batches.

    Each use takes one of its own: the masks follow from the seed and from how many batches it has made.
    """
    return DataCollatorForLanguageModeling(
        tokenizer, mlm=objective == "mlm", mlm_probability=settings.mask_probability, seed=settings.seed, pad_to_multiple_of=length
    )


class EndlessInputs(torch.utils.data.IterableDataset):
    """The documents over and over, tokenised while they are read, as inputs of ``length`` tokens in a mixed order.

    The order follows from the seed alone: a resumed run skips what it has seen.
    """

    def __init__(self, documents: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, seed: int) -> None:
        self.documents, self.tokenizer, self.length, self.seed = documents, tokenizer, length, seed

    def __iter__(self) -> Iterator[Input]:
        rng = random.Random(self.seed)
        stream = packed(self.documents, self.tokenizer, self.length, endless=True)
        waiting = list(islice(stream, max(2, MIXED_TOKENS // self.length)))
        for new in stream:
            place = rng.randrange(len(waiting))
            yield waiting[place]
            waiting[place] = new


def packed(documents: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, endless: bool = False) -> Iterator[Input]:
    """The documents joined by their end token and cut into inputs of ``length`` tokens; the last one may be shorter."""
    first, end = special_tokens(tokenizer)
    room, tokens = length - len(first), []
    while True:
        for row in documents:
            tokens += tokenizer(row["text"], add_special_tokens=False, verbose=False)["input_ids"] + end
            whole = len(tokens) - len(tokens) % room
            for at in range(0, whole, room):
                yield {"input_ids": first + tokens[at : at + room]}
            tokens = tokens[whole:]
        if not endless:
            break
    if tokens:
        yield {"input_ids": first + tokens}


def held_out_batches(documents: Dataset, tokenizer: PreTrainedTokenizerBase, collate: Any, count: int, size: int) -> list[Batch]:
    """The first ``count`` held-out inputs in batches of ``size``, masked once and for all."""
    found = list(islice(packed(documents, tokenizer, collate.pad_to_multiple_of), count))
    return [collate(found[at : at + size]) for at in range(0, len(found), size)]
