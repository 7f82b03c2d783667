"""The table of compressions: measured once, resumed, and written with what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import BertConfig, BertForMaskedLM

from scripts.dev.studies import compression
from scripts.dev.studies.compression import Row, Texts, main
from scripts.dev.studies.text_loss import first_tokens, masked_texts
from tests.evaluation.probes.small import byte_tokenizer, small_decoder

pytest.importorskip("torchao")
SHAPE = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = [f"text number {number} " * 30 for number in range(3)]


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study of two small models, two methods and two lengths."""
    encoder = BertForMaskedLM(BertConfig(**SHAPE, max_position_embeddings=64))
    decoder = small_decoder()
    decoder.config.max_position_embeddings = 64
    for name, model in {"encoder": encoder, "llama": decoder}.items():
        model.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)

    def rows() -> Iterator[Row]:
        yield Row("encoder", "window", {"window": 16})
        yield Row("encoder", "linear")
        yield Row("llama", "window", {"window": 16, "positions": "rope:none"})

    def texts(model: str, folder: Path, count: int) -> Texts:
        tokenizer = byte_tokenizer()
        if model == "encoder":
            return Texts(tokenizer, masked=masked_texts(TEXT, tokenizer, 128, count))
        return Texts(tokenizer, plain=first_tokens(TEXT, tokenizer, 128, count))

    def importance_text(work: Path) -> Path:
        (work / "importance.txt").write_text(" ".join(TEXT))
        return work / "importance.txt"

    monkeypatch.setattr(compression, "rows", rows)
    monkeypatch.setattr(compression, "texts", texts)
    monkeypatch.setattr(compression, "importance_text", importance_text)
    monkeypatch.setattr(compression, "LENGTHS", (64, 128))
    monkeypatch.setattr(compression, "METHODS", {"bf16": None, "prune-heads": None})
    monkeypatch.setattr(compression, "TITLES", {"encoder": "Encoder", "llama": "Llama"})
    monkeypatch.setattr(compression.Study, "original", lambda self, model: tmp_path / model)


def test_a_study_is_resumed_and_told(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["--work-dir", str(tmp_path / "work"), "--documents", "2", "--output", str(tmp_path / "compress")]
    assert main(typed) == 0
    told = (tmp_path / "compress.md").read_text()
    lines = [line for line in told.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == ["window", "linear", "window"]
    assert lines[2].endswith("| – |"), "this Llama has one head for keys and values"
    assert lines[0].count(" / ") == 3
    record = json.loads((tmp_path / "compress.json").read_text())
    assert record["missing"] == []
    cell = record["rows"][0]["cells"]["bf16"]
    assert [len(cell["losses"][length]) for length in ("64", "128")] == [2, 2]
    assert cell["bytes"] < record["rows"][0]["cells"]["before"]["bytes"]
    assert "none can be cut out" in record["rows"][2]["cells"]["prune-heads"]["refused"]

    def never(*_: object) -> None:
        raise AssertionError("everything was measured before")

    monkeypatch.setattr(compression, "measured", never)
    assert main(typed) == 0
    assert (tmp_path / "compress.md").read_text() == told
