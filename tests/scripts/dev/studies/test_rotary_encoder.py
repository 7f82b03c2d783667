"""The study of rotary positions in an encoder: what it trains on, and the page of its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from hf_longattn.positions.relative import read_relative
from scripts.dev import RESULTS
from scripts.dev.studies import rotary_encoder
from scripts.dev.studies.joint_reading import read
from scripts.dev.studies.manual_pages import Manual
from scripts.dev.studies.rotary_encoder import RULES, SIZES, markdown, pieces


def test_every_rule_is_an_option() -> None:
    found = [read_relative(rule) for rule in RULES.values()]
    assert found == ["rotary", "rotary:factor=16", "rotary:base=192484", "rotary_self_extend:window=128,group=22"]


def test_the_pieces_of_the_training_are_none_of_the_test(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" ".join(f"{name}{number % 7}" for number in range(900)) for name in ("page", "title", "tool", "option", "shared")]
    manuals = {"test": texts[4:], "train": texts}
    found = {
        split: [Manual(str(number), "a package", "a page", text) for number, text in enumerate(of_split)]
        for split, of_split in manuals.items()
    }
    monkeypatch.setattr(rotary_encoder, "manuals", lambda split, folder: found[split])
    pieces(tmp_path, tokenizer)
    written = [row["text"] for row in read(tmp_path / "pieces.jsonl")]
    assert not any("shared" in text for text in written)
    for text, size in zip(texts, SIZES, strict=False):
        own = [piece for piece in written if piece.split()[0][:3] == text[:3]]
        assert len("".join(own).split()) > 0
        assert max(len(tokenizer(piece)["input_ids"]) for piece in own) <= size


def test_the_page_is_that_of_the_numbers() -> None:
    record = json.loads((RESULTS / "rotary_encoder.json").read_text(encoding="utf-8"))
    assert (RESULTS / "rotary_encoder.md").read_text(encoding="utf-8") == markdown(record)
