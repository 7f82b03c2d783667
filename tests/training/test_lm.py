"""Language-model adaptation: masked and next tokens, any text, a loss that falls, a checkpoint that loads; bad input in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn import LongBertForMaskedLM
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.sources import DataError, load_text
from hf_longattn.errors import CheckpointError, LongAttentionError, OptionError
from hf_longattn.training.lm import LM, finetune_lm, load_lm
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.tasks.clm import CLM
from hf_longattn.training.tasks.mlm import MLM
from hf_longattn.training.training_loop import LOG_NAME
from tests.grids import quickly
from tests.training.conftest import FAST, SOURCES, checkpoint, written_texts


@pytest.mark.thorough
@pytest.mark.parametrize("kind", quickly(["mlm", "clm"], ["clm"]))
def test_a_converted_model_learns_from_long_text(kind: str, tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase) -> None:
    short = checkpoint(kind, tmp_path / "short", tokenizer)
    convert_checkpoint(short, tmp_path / "long", mechanism="window", max_length=256, window=32, verify=False)
    log = finetune_lm(
        *build_arguments(
            LM, model=str(tmp_path / "long"), output_dir=str(tmp_path / "out"), text=[texts], max_steps=20, learning_rate=3e-3, **FAST
        )
    )
    assert (log["objective"], log["input_length"]) == (kind, 256)
    assert log["held_out_loss"]["after"] < log["held_out_loss"]["before"] - 0.1
    assert json.loads((tmp_path / "out" / LOG_NAME).read_text())["settings"]["max_steps"] == 20
    if kind == "mlm":
        assert LongBertForMaskedLM.from_pretrained(tmp_path / "out").config.max_position_embeddings == 256


def test_from_scratch_keeps_the_architecture_alone(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    short = checkpoint("clm", tmp_path / "short", tokenizer)
    convert_checkpoint(
        short, tmp_path / "long", layers={"in_turn": [{"mechanism": "taylor"}, {"mechanism": "window", "window": 8}]}, verify=False
    )
    trained, fresh = (load_lm(str(tmp_path / "long"), "clm", from_scratch=scratch)[0] for scratch in (False, True))
    assert type(fresh) is type(trained)
    assert fresh.config.long_attention == trained.config.long_attention
    before, after = (dict(model.named_parameters()) for model in (trained, fresh))
    assert before.keys() == after.keys()
    assert all(after[name].isfinite().all() for name in after)
    matrices = [name for name in after if after[name].ndim > 1]
    assert not any(torch.equal(before[name], after[name]) for name in matrices)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", quickly(["mlm", "clm"], ["mlm"]))
def test_the_batches_of_a_step_are_averaged(kind: str, tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Four batches in a step have the loss of one, not of four."""
    short = checkpoint(kind, tmp_path / "short", tokenizer)
    usual = {**FAST, "gradient_accumulation_steps": 4, "max_steps": 1, "learning_rate": 1e-5}
    log = finetune_lm(*build_arguments(LM, model=short, output_dir=str(tmp_path / "out"), text=[texts], **usual))
    (loss,) = (entry["loss"] for entry in log["history"] if "loss" in entry)
    assert loss == pytest.approx(log["held_out_loss"]["before"], rel=0.1)


def test_text_from_files_folders_and_data_sets(tmp_path: Path) -> None:
    texts = written_texts(tmp_path / "texts")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": source, "n": 1}) + "\n" for source in SOURCES))
    Dataset.from_list([{"body": source} for source in SOURCES]).save_to_disk(str(tmp_path / "saved"))
    Dataset.from_list([{"body": source} for source in SOURCES]).to_parquet(str(tmp_path / "a.parquet"))
    Dataset.from_list([{"body": source} for source in [*SOURCES, "", None]]).to_csv(str(tmp_path / "a.csv"), index=False)
    whole = sorted(SOURCES)
    for source, column in (
        (texts, "text"),
        (tmp_path / "a.jsonl", "body"),
        (tmp_path / "saved", "body"),
        (tmp_path / "a.parquet", "body"),
        (tmp_path / "a.csv", "body"),
    ):
        assert sorted(load_text([str(source)], column=column)["text"]) == whole
    assert len(load_text([texts, f"{texts}/0.txt"])) == len(SOURCES) + 1
    assert len(load_text([texts], limit=2)) == 2


def test_bad_input_is_a_sentence(tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase) -> None:
    short = checkpoint("clm", tmp_path / "short", tokenizer)
    encoder = checkpoint("mlm", tmp_path / "encoder", tokenizer)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "n": 1}) + "\n")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00 not text \xd8")
    given: dict[str, Any] = {"model": short, "output_dir": str(tmp_path / "o"), "text": [texts]}
    cases: list[tuple[type[LongAttentionError], str, Any, dict[str, Any]]] = [
        (OptionError, "No text given", LM, {"text": []}),
        (CheckpointError, "There is no folder", LM, {"model": str(tmp_path / "none")}),
        (OptionError, "exceeds the 64 tokens", LM, {"max_length": 65}),
        (OptionError, "does not predict masked tokens", MLM, {}),
        (OptionError, "does not predict the next token", CLM, {"model": encoder}),
        (DataError, "does not exist", LM, {"text": [str(tmp_path / "none.txt")]}),
        (DataError, "not 'body'", LM, {"text": [str(tmp_path / "a.jsonl")], "column": "body"}),
        (DataError, "holds int64, not text", LM, {"text": [str(tmp_path / "a.jsonl")], "column": "n"}),
        (DataError, "is not UTF-8 text .*decode", LM, {"text": [str(tmp_path / "bad.txt")]}),
        (OptionError, "--per-device-train-batch-size must be at least 1", LM, {"per_device_train_batch_size": 0}),
        (OptionError, "only one document", LM, {"text": [f"{texts}/0.txt"]}),
    ]
    for error, words, kind, changes in cases:
        with pytest.raises(error, match=words):
            finetune_lm(*build_arguments(kind, **{**given, **changes}))


def test_quantised_weights_cannot_be_trained(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    short = checkpoint("clm", tmp_path / "short", tokenizer)
    monkeypatch.setattr(PreTrainedModel, "is_quantized", True, raising=False)
    with pytest.raises(CheckpointError, match="holds quantised weights, which cannot be trained"):
        load_lm(short, "auto")
