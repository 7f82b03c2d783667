"""A short training on long documents, and Table 5 made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from hf_longattn.errors import LengthError
from scripts.dev.studies import table5
from scripts.dev.studies.adaptation import adapt, paired, standard_error, training_losses, write_long_documents
from scripts.dev.studies.corpus import TextFolder
from scripts.dev.studies.text_loss import MaskedText

TABLE = "bert.embeddings.position_embeddings.weight"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TextFolder:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(60):
        lines = (f"value_{number}_{line} = compute(value_{line}, {number})" for line in range(40))
        (folder / f"{number}.py").write_text("\n".join(lines), encoding="utf-8")
    return TextFolder(folder)


@pytest.fixture
def short(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A BERT of 32 positions, with the log of a pre-training of 100 steps."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder = tmp_path / "short"
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training_log.jsonl").write_text('{"step": 50}\n{"step": 100}\n{"event": "finished"}\n', encoding="utf-8")
    return folder


def test_documents_are_long_and_written_once(corpus: TextFolder, tmp_path: Path) -> None:
    path = write_long_documents(tmp_path / "train.jsonl", 1000, 5000, corpus=corpus)
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(len(text) >= 1000 for text in texts)
    assert 5000 <= sum(map(len, texts)) < 5000 + max(map(len, texts))
    held_out = {module.text for split in ("validation", "test") for module in corpus.iter_modules(split)}
    assert not held_out & set(texts)
    written = path.stat().st_mtime_ns
    assert write_long_documents(path, 1000, 10**9, corpus=corpus).stat().st_mtime_ns == written
    with pytest.raises(LengthError, match="ask for less"):
        write_long_documents(tmp_path / "more.jsonl", 1000, 10**9, corpus=corpus)
    assert not list(tmp_path.glob("more*"))


def test_only_new_rows_are_trained(corpus: TextFolder, short: Path, tmp_path: Path) -> None:
    text = write_long_documents(tmp_path / "train.jsonl", 1000, 5000, corpus=corpus)
    settings = {"objective": "mlm", "length": 32, "steps": 2, "rows": 2, "learning_rate": 1e-2, "bf16": False}
    folder = adapt(short, tmp_path / "rows", text, **settings, new_rows_of="position_embeddings.weight", old_rows=8)  # type: ignore[arg-type]
    before, after = load_file(short / "model.safetensors"), load_file(folder / "model.safetensors")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [TABLE]
    assert torch.equal(before[TABLE][:8], after[TABLE][:8])
    assert len(training_losses(folder)) == 2
    kept = (folder / "model.safetensors").stat().st_mtime_ns
    assert adapt(short, folder, text, **settings).joinpath("model.safetensors").stat().st_mtime_ns == kept  # type: ignore[arg-type]


def test_differences_are_paired() -> None:
    assert paired([2.0, 3.0, 5.0], [1.0, 2.0, 4.0]) == (1.0, 0.0)
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)
    assert standard_error([1.0]) == 0.0


def test_characters_of_masked_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tuple(tokenizer("compute value", add_special_tokens=False)["input_ids"])
    assert table5.characters([MaskedText(tokens, tuple(range(len(tokens))))], tokenizer) == len("compute value")


def test_all_rows_of_table_5(
    corpus: TextFolder, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table5, "TOKENS_PER_STEP", 128)
    monkeypatch.setattr(table5, "iter_modules", lambda split: corpus.iter_modules("train"))
    monkeypatch.setattr(
        table5, "write_long_documents", lambda path, least, characters, seed: write_long_documents(path, 1000, 5000, corpus=corpus)
    )
    output = tmp_path / "results" / "table5"
    arguments = [
        "--model",
        str(short),
        "--length",
        "64",
        "--window",
        "16",
        "--documents",
        "3",
        "--work-dir",
        str(tmp_path / "work"),
        "--output",
        str(output),
    ]
    rates = ["--learning-rates", "1e-3", "1e-9", "--validation-documents", "2"]
    assert table5.main([*arguments, *rates, "--more", "0.04", "--controls"]) == 0
    record = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    rows = {row["row"]: row for row in record["table"]}
    assert list(rows) == [
        "original", "random positions", "copied positions", "copied positions + 0.02", "copied positions + 0.04", "random positions + 0.02",
        "copied positions, new rows only",
    ]  # fmt: skip
    assert [row["steps"] for row in rows.values()] == [0, 0, 0, 2, 4, 2, 2]
    validation = rows["copied positions + 0.02"]["validation"]
    assert list(validation) == ["untrained", "0.001", "1e-09"]
    assert validation["1e-09"] == pytest.approx(validation["untrained"], abs=1e-4)
    best = min(("0.001", "1e-09"), key=validation.__getitem__)
    assert {row["learning_rate"] for row in list(rows.values())[3:6]} == {float(best)}
    assert {row["masked_tokens"] for row in rows.values()} == {3 * 9}
    assert all(row["n"] == 3 and row["bits_per_token"] == pytest.approx(row["nats"] / 0.693147, rel=1e-5) for row in rows.values())
    written = output.with_suffix(".md").read_text(encoding="utf-8")
    assert "copied positions + 4 steps (4 %)" in written
    assert f"; {validation['untrained']:.3f} without training." in written
    (short / "training_log.jsonl").unlink()
    assert table5.main(arguments) == 1
    assert "has no training_log.jsonl" in capsys.readouterr().err
