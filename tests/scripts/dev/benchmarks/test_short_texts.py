"""What exact_length costs: texts are compared with each read alone before anything is timed, and the table says how sure a share is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from hf_longattn.families import LongBertConfig, LongBertModel
from scripts.dev.benchmarks import short_texts
from scripts.dev.benchmarks.short_texts import ORIGINAL, WITH, WITHOUT, largest_difference, markdown, ratio, time_in_turn


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Small ones with the same weights, for which 8 tokens are short."""
    monkeypatch.setattr(short_texts, "SHORT", 8)
    shape: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    attention = {"mechanism": "longformer", "window": 4}
    original = BertModel(BertConfig(**shape)).eval()
    models = {ORIGINAL: original}
    for name, exact in ((WITHOUT, 0), (WITH, 8)):
        models[name] = LongBertModel(LongBertConfig(**shape, long_attention={**attention, "exact_length": exact})).eval()
        models[name].load_state_dict(original.state_dict())
    return models


def test_every_text_of_a_batch_is_compared_with_itself_alone(models: dict[str, Any], real_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_folder)
    assert largest_difference(models, tokenizer, [20, 8, 5]) < 1e-5
    assert largest_difference({**models, WITH: models[WITHOUT]}, tokenizer, [20, 8, 5]) > 1e-4
    assert largest_difference({**models, WITH: models[ORIGINAL]}, tokenizer, [20, 8, 5]) > 1e-4


def test_shares_are_medians_of_paired_turns_with_their_interval(models: dict[str, Any]) -> None:
    turns = [{WITH: 10.0 + number, WITHOUT: 10.0} for number in range(9)]
    assert ratio(turns, WITH, WITHOUT) == (1.4, 1.1, 1.7)
    ids = torch.ones(1, 5, dtype=torch.long)
    timed = time_in_turn(models, {"input_ids": ids}, seconds=0.0)
    assert len(timed) == short_texts.TURNS[0]
    assert all(set(turn) == set(models) for turn in timed)
    about = {"processor": "a processor", "threads": 1, "torch": "2", "transformers": "5", "date": "2026-01-01"}
    table = markdown({"machine": about, "differences": {"1,024": 1e-7}, "milliseconds": {"1,024": turns}})
    assert "| 1,024 | 14 | 1.400 [1.10, 1.70] | – | 1e-07 |" in table
