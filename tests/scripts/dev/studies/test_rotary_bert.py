"""The study of rotary positions in the project's BERT: its rules, texts and page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from scripts.dev import RESULTS
from scripts.dev.studies import rotary_bert
from scripts.dev.studies.corpus import Module
from scripts.dev.studies.joint_reading import read
from scripts.dev.studies.rotary_bert import HEAD_DIM, LONG, RULES, SOURCE, TRAINED, markdown, texts


def test_the_rules_are_for_this_model() -> None:
    config = AutoConfig.from_pretrained(SOURCE)
    assert (config.max_position_embeddings, config.hidden_size // config.num_attention_heads) == (TRAINED, HEAD_DIM)
    assert [*RULES.values()] == ["rotary", "rotary:factor=8", "rotary:base=85550", "rotary_self_extend:window=128,group=11"]


def test_held_out_files_fill_an_input_of_every_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "".join(f"value_{number} = {number % 7}\n" for number in range(2000))
    files = {"train": [f"x = {number}\n" for number in range(9)], "test": ["short = 1\n", long, f"{long}# another\n", long.upper()]}
    monkeypatch.setattr(rotary_bert, "iter_modules", lambda split: [Module("a", "a.py", text) for text in files[split]])
    texts(tmp_path, 2)
    assert [row["text"] for row in read(tmp_path / "train.jsonl")] == ["x = 0\n", "x = 4\n", "x = 8\n"]
    tokenizer, held_out = AutoTokenizer.from_pretrained(SOURCE), read(tmp_path / "test.jsonl")
    assert [len(tokenizer(row["text"])["input_ids"]) for row in held_out] == [LONG, LONG]
    assert all(file.startswith(row["text"]) for file, row in zip(files["test"][1:], held_out, strict=False))


def test_the_page_is_that_of_the_numbers() -> None:
    record = json.loads((RESULTS / "rotary_bert.json").read_text(encoding="utf-8"))
    assert (RESULTS / "rotary_bert.md").read_text(encoding="utf-8") == markdown(record)
