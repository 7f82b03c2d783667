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
from hf_longattn.errors import CheckpointError, LongAttentionError, OptionError
from hf_longattn.training.old_lm import CLM, LM, MLM, finetune_lm, load_lm
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.training_loop import LOG_NAME
from tests.grids import quickly
from tests.training.conftest import FAST, checkpoint


@pytest.mark.thorough
@pytest.mark.parametrize("kind", quickly(["mlm", "clm"], ["clm"]))
def test_converted_language_model_learns_from_long_text(kind: str, tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase) -> None:
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


def test_from_scratch_keeps_the_architecture_and_no_weights(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
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


def test_language_model_training_refuses_unfit_models_and_texts(tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase) -> None:
    short = checkpoint("clm", tmp_path / "short", tokenizer)
    encoder = checkpoint("mlm", tmp_path / "encoder", tokenizer)
    given: dict[str, Any] = {"model": short, "output_dir": str(tmp_path / "o"), "text": [texts]}
    cases: list[tuple[type[LongAttentionError], str, Any, dict[str, Any]]] = [
        (OptionError, "exceeds the 64 tokens", LM, {"max_length": 65}),
        (OptionError, "does not predict masked tokens", MLM, {}),
        (OptionError, "does not predict the next token", CLM, {"model": encoder}),
        (OptionError, "only one document", LM, {"text": [f"{texts}/0.txt"]}),
    ]
    for error, words, kind, changes in cases:
        with pytest.raises(error, match=words):
            finetune_lm(*build_arguments(kind, **{**given, **changes}))


def test_training_refuses_quantised_weights(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    short = checkpoint("clm", tmp_path / "short", tokenizer)
    monkeypatch.setattr(PreTrainedModel, "is_quantized", True, raising=False)
    with pytest.raises(CheckpointError, match="holds quantised weights, which cannot be trained"):
        load_lm(short, "auto")
