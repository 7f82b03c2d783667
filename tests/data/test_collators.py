"""A column of global tokens is padded with the text."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from hf_longattn.training import DataCollatorWithGlobals


@pytest.mark.parametrize(("side", "expected"), [("right", [[1, 0, 0, 0], [1, 1, 0, 0]]), ("left", [[1, 0, 0, 0], [0, 0, 1, 1]])])
def test_global_tokens_are_padded_where_the_text_is(side: str, expected: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> None:
    before, tokenizer.padding_side = tokenizer.padding_side, side
    try:
        rows = [{"input_ids": [5, 6, 7, 8], "global_attention_mask": [1, 0, 0, 0]}, {"input_ids": [5, 6], "global_attention_mask": [1, 1]}]
        batch = DataCollatorWithGlobals(tokenizer)([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows])
        assert batch["global_attention_mask"].tolist() == expected
        assert (batch["global_attention_mask"] <= batch["attention_mask"]).all()
        plain = DataCollatorWithGlobals(tokenizer)([{"input_ids": [5, 6, 7]}, {"input_ids": [5]}])
        assert "global_attention_mask" not in plain
    finally:
        tokenizer.padding_side = before
