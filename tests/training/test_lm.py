"""Language-model adaptation: masked and next tokens, any text, a loss that falls, a checkpoint that loads; bad input in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn import LongBertForMaskedLM
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.tokenization import input_length
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.training.lm import load_lm
from hf_longattn.training.run import LOG_NAME
from tests.grids import quickly
from tests.training.conftest import FAST, checkpoint, start_task


@pytest.mark.thorough
@pytest.mark.parametrize("kind", quickly(["mlm", "clm"], ["clm"]))
def test_converted_language_model_learns_from_long_text(kind: str, tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase) -> None:
    short = checkpoint(kind, tmp_path / "short", tokenizer)
    convert_checkpoint(short, tmp_path / "long", mechanism="window", max_length=256, window=32, verify=False)
    given = {"model": str(tmp_path / "long"), "output_dir": str(tmp_path / "out"), "data": [texts], **FAST}
    log = start_task(kind, **given, max_steps=20, learning_rate=3e-3)
    assert log["input_length"] == 256
    assert log["metrics"]["after"]["loss"] < log["metrics"]["before"]["loss"] - 0.1
    assert json.loads((tmp_path / "out" / LOG_NAME).read_text())["settings"]["max_steps"] == 20
    if kind == "mlm":
        assert LongBertForMaskedLM.from_pretrained(tmp_path / "out").config.max_position_embeddings == 256


def test_language_model_training_refuses_unfit_models_and_texts(tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase) -> None:
    short = checkpoint("clm", tmp_path / "short", tokenizer)
    encoder = checkpoint("mlm", tmp_path / "encoder", tokenizer)
    given: dict[str, Any] = {"model": short, "output_dir": str(tmp_path / "o"), "data": [texts]}
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("exceeds the 64 tokens", "clm", {"max_length": 65}),
        ("does not predict masked tokens", "mlm", {}),
        ("does not predict the next token", "clm", {"model": encoder}),
        ("only one document|only one row", "clm", {"data": [f"{texts}/0.txt"]}),
        ("--mlm-probability must lie between 0 and 1", "mlm", {"mlm_probability": 1.0}),
    ]
    for words, task, changes in cases:
        with pytest.raises(OptionError, match=words):
            start_task(task, **{**given, **changes})


def test_training_refuses_quantised_weights(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    short = checkpoint("clm", tmp_path / "short", tokenizer)
    monkeypatch.setattr(PreTrainedModel, "is_quantized", True, raising=False)
    with pytest.raises(CheckpointError, match="holds quantised weights, which cannot be trained"):
        load_lm(short, "auto")


def test_model_without_a_length_needs_max_length(tokenizer: PreTrainedTokenizerBase) -> None:
    class Endless(torch.nn.Module):
        config: Any = None
        base_model = torch.nn.Module()

    tokenizer.model_max_length, usual = int(1e30), tokenizer.model_max_length
    try:
        with pytest.raises(OptionError, match="give --max-length"):
            input_length(Endless(), tokenizer, None)  # type: ignore[arg-type]
        assert input_length(Endless(), tokenizer, 300) == 300  # type: ignore[arg-type]
    finally:
        tokenizer.model_max_length = usual
