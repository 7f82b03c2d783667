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
from scripts.dev.tools.every_config import model_class, small_config
from tests.cases import every_case
from tests.fresh_processes import run_fresh
from tests.reference.every_architecture import build, float64_throughout, make_visible
from tests.reference.small_models import pair
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


DOCUMENTS = (8, 12)
"""Tokens of the documents of a packed row."""
RESTARTING = torch.cat([torch.arange(tokens) for tokens in DOCUMENTS])[None]
NUMBERS = torch.repeat_interleave(torch.arange(2), torch.tensor(DOCUMENTS))[None]
OFFSETS = torch.tensor([0, 8, 20], dtype=torch.int32)
PASS_POSITIONS = ("llama", "gemma3_text", "gpt2")
"""Model types that pass position_ids to their masks."""
PASS_NONE = ("gpt_oss", "afmoe", "opt", "bert", "modernbert")
"""Model types that docs/how-to/stock.md names as those that do not, and encoders."""


def mixed(model: Any, **arguments: Any) -> bool:
    """Whether the documents of a packed row see each other, in float64."""
    ids = torch.randint(5, 30, (1, sum(DOCUMENTS)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        packed = model(ids, position_ids=RESTARTING, **arguments)[0]
        alone = torch.cat([model(part)[0] for part in ids.split(DOCUMENTS, 1)], 1)
    difference = float((packed - alone).abs().max())
    assert difference > 1e-3 or difference < 1e-12
    return difference > 1e-3


@every_case("model_type", PASS_POSITIONS + PASS_NONE)
def test_packed_documents_are_apart_by_keywords_and_else_as_transformers_has_them(model_type: str) -> None:
    with float64_throughout():
        config, kind = small_config(model_type), model_class(model_type)
        assert kind is not None
        eager, longattn = (build(kind, config, implementation) for implementation in ("eager", "longattn"))
        make_visible(eager)
        longattn.load_state_dict(eager.state_dict())
        ones = {"attention_mask": torch.ones(1, sum(DOCUMENTS), dtype=torch.long)}
        for further in ({}, ones, {"use_cache": False}):
            apart_by_positions = further == {"use_cache": False} and model_type in PASS_POSITIONS
            assert mixed(eager, **further) == mixed(longattn, **further) == (not apart_by_positions)
            assert not mixed(longattn, **further, documents=NUMBERS)
        for name, value in (("seq_idx", NUMBERS.int()), ("cu_seq_lens_q", OFFSETS)):
            assert not mixed(longattn, **{name: value})


def test_padding_free_batches_of_trl_are_apart_in_a_converted_model() -> None:
    """Rows of position_ids that restart, which sdpa mixes with the cache that a model makes by default."""
    stock, long = pair("llama", None, {"mechanism": "full"})
    for model, expected in ((stock.double(), True), (long.double(), False)):
        assert mixed(model) == expected
    stock.set_attn_implementation("longattn")
    assert mixed(stock)
    assert not mixed(stock, use_cache=False)
