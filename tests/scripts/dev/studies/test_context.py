"""Loss against context: the same tokens at every length, rows that are made once, and a table with a plot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_longattn.errors import LengthError
from scripts.dev.studies import context
from scripts.dev.studies.context import Row, held_out_documents, losses_at, main
from scripts.dev.studies.corpus import TextFolder
from scripts.dev.studies.pretraining import data


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared work folder with long documents to adapt to."""
    texts, folder = tmp_path_factory.mktemp("texts"), tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    for number in range(120):
        lines = [" ".join(f"word{index}" for index in rng.integers(0, 50, 10)) for _ in range(30)]
        (texts / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    data.prepare(TextFolder(texts), folder, vocab_size=320)
    rows = [json.dumps({"text": path.read_text(encoding="utf-8")}) for path in sorted(texts.iterdir())[:8]]
    (folder / "train-512.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_documents_are_the_beginnings_of_long_ones(work: Path) -> None:
    tokens = data.load_tokens(work, "test")
    documents = held_out_documents(work, 2, 300)
    assert documents.shape == (2, 300)
    assert not (documents == data.SEP).any()
    starts = {0, *(np.flatnonzero(tokens == data.SEP) + 1)}
    assert all(
        any((tokens[start : start + 300] == document).all() for start in starts if start + 300 <= len(tokens)) for document in documents
    )
    with pytest.raises(LengthError, match="ask for at most as many"):
        held_out_documents(work, 10_000, 300)


def test_every_length_predicts_the_same_tokens() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32
    )
    model = LlamaForCausalLM(config).eval()
    documents = np.random.default_rng(0).integers(5, 50, (2, 40))
    whole = torch.cat([torch.full((2, 1), data.CLS), torch.from_numpy(documents)], 1)
    with torch.no_grad():
        expected = [float(model(row[None], labels=row[None]).loss) for row in whole]
    assert losses_at(model, documents, 41) == pytest.approx(expected, abs=2e-2)  # bf16
    with torch.no_grad():
        for part in model.parameters():
            part.zero_()
    for length in (8, 41):  # a model that knows nothing loses as much in pieces
        assert losses_at(model, documents, length) == pytest.approx([np.log(50)] * 2, abs=1e-3)


def test_a_stopped_pretraining_is_not_exported(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(context, "LONG", 512)
    monkeypatch.setattr(context.Pretraining, "run", lambda self: None)
    assert main(["--work-dir", str(work), "--documents", "2", "--output", str(tmp_path / "context")]) == 1
    assert "the pre-training of GPT-2 was stopped; run the same command to resume it" in capsys.readouterr().err
    assert not (work / "gpt2-256").exists()
    assert main(["--work-dir", str(work), "--documents", "2", "--measured", "--output", str(tmp_path / "context")]) == 1
    assert "the original GPT-2 is not measured yet" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_study_is_one_command_that_resumes(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"LENGTHS": (256, 512), "LONG": 512, "TOKENS": {"gpt2": 3000, "llama": 3000}}.items():
        monkeypatch.setattr(context, name, value)
    monkeypatch.setattr(
        context, "RECIPE", replace(context.RECIPE, compile=False, batch_tokens=1024, warmup_tokens=1, evaluation_sequences=1)
    )
    hybrid = Row("hybrid", {"mechanism": "hybrid", "window": 16})
    yarn = Row("full attention, YaRN", {"mechanism": "full", "positions": "rope:yarn"}, adapted=False)
    monkeypatch.setattr(context, "ROWS", {"gpt2": (Row("original", adapted=False), hybrid), "llama": (Row("original"), yarn)})
    output = tmp_path / "context"
    arguments = ["--work-dir", str(work), "--documents", "2", "--steps", "2", "--transfer-steps", "2", "--output", str(output)]
    assert main(arguments) == 0
    record = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    assert [(row["row"], row["adapted"]) for row in record["tables"]["gpt2"]] == [("original", False), ("hybrid", False), ("hybrid", True)]
    original, before, after = record["tables"]["gpt2"]
    assert original["losses"]["512"] is None  # no positions
    assert original["losses"]["256"]["from_original"] == 0
    assert before["losses"]["512"]["loss"] != after["losses"]["512"]["loss"]
    assert record["about"]["pretraining"]["llama"]["tokens"] >= 3000
    assert record["tables"]["llama"][0]["losses"]["512"]["n"] == 2
    assert "**Llama**" in output.with_suffix(".md").read_text(encoding="utf-8")
    assert output.with_suffix(".svg").read_text(encoding="utf-8").startswith("<?xml")
    capsys.readouterr()
    assert main(arguments) == 0
    assert ": 512:" not in capsys.readouterr().err  # nothing is measured again
    assert json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))["tables"] == record["tables"]
    file = next(work.glob("cells-2-gpt2.json"))
    cells = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({name: cell for name, cell in cells.items() if not name.endswith(": 512") or "adapted" not in name}))
    assert main([*arguments, "--measured"]) == 0
    part = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    assert part["missing"] == {"gpt2": ["hybrid, adapted"], "llama": []}
    assert "Not measured yet: hybrid, adapted." in output.with_suffix(".md").read_text(encoding="utf-8")
    assert part["tables"] == {"gpt2": record["tables"]["gpt2"][:2], "llama": record["tables"]["llama"]}
