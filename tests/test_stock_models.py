"""Stock models under ``attn_implementation="longattn"``, as users load, train and save them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments, pipeline

import hf_longattn
from tests.fresh_processes import run_fresh
from tests.stand_ins import StandIns

LONGATTN = {"attn_implementation": "longattn"}
TEXT = "Ada paints her house red, and Bea paints hers green. " * 12


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Small checkpoints with windows of 8 and 16 tokens, under the names of published ones."""
    stand_ins = StandIns(tmp_path_factory.mktemp("stand_ins"))
    return lambda name: str(stand_ins.made(name))


def test_pipeline_with_longattn_scores_tokens_as_transformers_does(folder_of: Callable[[str], str]) -> None:
    folder = folder_of("openai/privacy-filter")
    settings: list[dict[str, Any]] = [{}, LONGATTN]
    expected, computed = (
        pipeline("token-classification", folder, model_kwargs=setting, device="cpu")(TEXT) for setting in settings
    )
    assert len(expected) > 100
    assert [token["entity"] for token in computed] == [token["entity"] for token in expected]
    assert [token["score"] for token in computed] == pytest.approx([token["score"] for token in expected], abs=1e-5)


def test_sentence_transformer_with_longattn_has_equal_embeddings(folder_of: Callable[[str], str]) -> None:
    from sentence_transformers import SentenceTransformer

    folder = folder_of("nomic-ai/modernbert-embed-base")
    models = [SentenceTransformer(folder, model_kwargs=dict(setting), device="cpu") for setting in ({}, LONGATTN)]
    assert models[1][0].auto_model.config._attn_implementation == "longattn"
    expected, computed = (model.encode([TEXT, "Ada", TEXT[:300]]) for model in models)
    torch.testing.assert_close(torch.tensor(computed), torch.tensor(expected), atol=1e-5, rtol=0)


LOAD_WITHOUT_PACKAGE = """
import sys
sys.modules["hf_longattn"] = None  # an import fails
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("saved").eval()
assert model.config._attn_implementation == "sdpa"
torch.save(model(torch.load("ids.pt")).logits.detach(), "logits.pt")
"""


def test_trained_stock_model_loads_without_this_package(
    folder_of: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder_of("google/gemma-3-270m"), **LONGATTN)
    before = model.get_input_embeddings().weight.detach().clone()
    ids = torch.randint(3, model.config.vocab_size, (2, 200), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments(
        "runs", max_steps=1, learning_rate=1e-3, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in ids])
    trainer.train()
    trainer.save_model("saved")
    assert not torch.equal(model.get_input_embeddings().weight, before)
    config = Path("saved/config.json").read_text(encoding="utf-8")
    assert "longattn" not in config
    assert "long_attention" not in config
    assert json.loads(config)["model_type"] == "gemma3_text"
    torch.save(ids, "ids.pt")
    done = run_fresh("-c", LOAD_WITHOUT_PACKAGE)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, torch.load("logits.pt"), atol=1e-5, rtol=1e-5)


def test_names_and_plan_free_call_select_the_same_attention(folder_of: Callable[[str], str]) -> None:
    model = AutoModel.from_pretrained(folder_of("answerdotai/ModernBERT-base"))
    assert hf_longattn.enable_long_attention(model).config._attn_implementation == "longattn"
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"
