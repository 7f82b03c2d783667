"""The contract of the reference checkpoints' tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hf_longattn.errors import LongAttentionError
from tests.byte_tokenizer import SPECIAL_TOKENS, train_tokenizer


def test_tokenizer_round_trip(tmp_path: Path) -> None:
    train_tokenizer(["def function(argument):\n    return argument\n"] * 20, vocab_size=300).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    question, document = "name the function", "def function(ünïcode):\n\treturn 1"
    encoded = tokenizer(question, document, return_offsets_mapping=True)
    ids, types = encoded["input_ids"], encoded["token_type_ids"]
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert [ids[0], ids[-1]] == [2, 3]
    assert ids.count(3) == 2
    assert types == sorted(types)
    assert types[ids.index(3)] == 0
    assert types[ids.index(3) + 1] == 1
    assert tokenizer.decode(tokenizer(document, add_special_tokens=False)["input_ids"]) == document
    offsets = encoded["offset_mapping"]
    start = next(i for i in range(len(ids)) if types[i] == 1 and offsets[i][0] == 4)
    assert document[offsets[start][0]] == "f"
    assert tokenizer.model_max_length == 512


def test_tokenizer_needs_room_for_all_bytes() -> None:
    with pytest.raises(LongAttentionError, match="at least 261"):
        train_tokenizer(["text"], vocab_size=260)
