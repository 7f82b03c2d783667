"""The real Gemma 3 270M on the whole way: converted, decoded from beyond its trained length, trained."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_longattn.cli import main
from hf_longattn.memory import cache_bytes
from scripts.dev.real import DECODER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not DECODER.is_dir(), reason="Gemma 3 270M is not there; make real-decoder, or name its folder in HF_LONGATTN_GEMMA"
    ),
]


@pytest.fixture(scope="module")
def streaming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its conversion by the recipe."""
    folder = tmp_path_factory.mktemp("gemma") / "streaming"
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(DECODER), str(folder), "--config", "streaming-llm"])
    assert not ended.value.code
    return folder


@pytest.fixture(scope="module")
def model(streaming: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(streaming, dtype=torch.bfloat16).eval()


@pytest.fixture(scope="module")
def ids(streaming: Path) -> torch.Tensor:
    """Python's language reference as a text ``(1, tokens)``."""
    text = " ".join(topics[name] for name in sorted(topics))
    return AutoTokenizer.from_pretrained(streaming)(text, return_tensors="pt", verbose=False)["input_ids"]


def test_recipe_keeps_the_rotations_and_fails_no_check(streaming: Path) -> None:
    report = json.loads((streaming / "conversion_report.json").read_text(encoding="utf-8"))
    assert "failed" not in {check["status"] for check in report["checks"]}
    source, result = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (DECODER, streaming))
    assert result["rope_parameters"] == source["rope_parameters"]


def test_text_beyond_the_trained_length_is_continued_from_a_cache_of_constant_size(model: Any, ids: torch.Tensor) -> None:
    sizes = []
    for tokens in (4096, model.config.max_position_embeddings + 256):
        done = model.generate(ids[:, :tokens], max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True)
        assert torch.stack(done.logits).isfinite().all()
        sizes.append(cache_bytes(done.past_key_values))
    assert sizes[0] == sizes[1]


def test_step_of_training_lowers_the_loss(streaming: Path, ids: torch.Tensor) -> None:
    model, text = AutoModelForCausalLM.from_pretrained(streaming, dtype=torch.float32).train(), ids[:, :1280]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = model(text, labels=text).loss
    before.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    optimizer.step()
    with torch.no_grad():
        assert model(text, labels=text).loss < before
