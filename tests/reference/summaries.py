"""Real text for models with an encoder and a decoder: an article, and its continuation to write."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.trained import REAL_TEXT, tokenizer_of

STEPS, BATCH = 16, 4
FIRST = 5
"""The tokenizer's ids are moved up, so that the special tokens of a model have none of its pieces."""


def with_tokenizer(folder: Path, length: int) -> None:
    tokenizer_of("gpt2", length).save_pretrained(folder)


@functools.cache
def _ids() -> Tensor:
    return torch.tensor(tokenizer_of("gpt2")(REAL_TEXT, verbose=False)["input_ids"]) + FIRST


def _cut(start: int, length: int) -> Tensor:
    return _ids().roll(-start)[torch.arange(length) % len(_ids())]


def real_texts(length: int, decoded: int, pad_token_id: int) -> dict[str, Tensor]:
    """Two texts, the second of two thirds, padded on the right, with what follows as labels."""
    ids, mask = torch.stack([_cut(0, length), _cut(100, length)]), torch.ones(2, length, dtype=torch.long)
    mask[1, 2 * length // 3 :] = 0
    ids = torch.where(mask.bool(), ids, pad_token_id)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.stack([_cut(length, decoded), _cut(100 + 2 * length // 3, decoded)]),
    }


def train_briefly(model: Any, length: int, decoded: int, pad_token_id: int) -> None:
    """A few steps of continuing the text: enough for attention to prefer some tokens over others."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model.train()
    for _ in range(STEPS):
        starts = torch.randint(0, len(_ids()), (BATCH,), generator=generator).tolist()
        ids = torch.stack([_cut(start, length) for start in starts])
        labels = torch.stack([_cut(start + length, decoded) for start in starts])
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.eval()
