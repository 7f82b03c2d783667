"""Batches with global tokens that the caller marks."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DataCollatorWithPadding


class WithoutLengths:
    """Before a collator of transformers: leaves out the lengths by which rows were grouped."""

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        rows = [{name: value for name, value in row.items() if name != "length"} for row in features]
        return super().__call__(rows, return_tensors)  # type: ignore[misc]


class DataCollatorWithGlobals(DataCollatorWithPadding):
    """transformers' ``DataCollatorWithPadding`` for rows that may have a ``global_attention_mask``, 1 = global.

    A tokenizer pads what it made itself and fails on any other column of lists. Padding is never global. Models whose config says which
    tokens are global (question answering) need no such column.
    """

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch of ``(B, N)`` tensors, as the base does, with ``global_attention_mask`` where rows have one.

        Raises:
            KeyError: some rows have the column and others do not.
        """
        rows = [dict(feature) for feature in features]
        if "global_attention_mask" not in rows[0]:
            return super().__call__(rows)
        masks = [list(row.pop("global_attention_mask")) for row in rows]
        batch = super().__call__(rows)
        length = batch["input_ids"].shape[1]
        left = self.tokenizer.padding_side == "left"
        gaps = [[0] * (length - len(mask)) for mask in masks]
        padded = [gap + mask if left else mask + gap for gap, mask in zip(gaps, masks, strict=True)]
        return {**batch, "global_attention_mask": torch.tensor(padded)}
