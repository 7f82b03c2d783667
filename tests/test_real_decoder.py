"""The real Gemma 3 270M on the whole way: planned, converted with measurements, decoded from beyond its trained
length, trained."""

from __future__ import annotations

import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_longattn.cli import main
from hf_longattn.conversion import check, convert_checkpoint, load, plan_conversion
from scripts.dev.benchmarks.memory import cache_bytes
from scripts.dev.real import DECODER
from tests.reports import check_of
from tests.saved import read_json

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not DECODER.is_dir(), reason="make real-decoder, or name the folder of Gemma 3 270M in HF_LONGATTN_GEMMA"
    ),
]
PROCESSOR_SECONDS = 180
"""Maximum processor time of a conversion: 90 seconds on two cores."""


def test_plan_keeps_windows_and_rotations() -> None:
    plan = plan_conversion(DECODER, mechanism="auto")
    layers = [plan.attention.for_layer(number)[1] for number in range(18)]
    assert [
        number for number, options in enumerate(layers) if (options["window"], options.get("num_sinks")) == (1024, 4)
    ] == [5, 11, 17]
    assert all(options["window"] == 512 for number, options in enumerate(layers) if number not in (5, 11, 17))
    assert "layers with a window of their own keep it" in plan.to_dict()["choice"]["reason"]
    sinks = {"mechanism": "window", "window": 1024, "num_sinks": 4}
    for settings in (sinks, {**sinks, "max_length": 131_072}):
        plan = plan_conversion(DECODER, **settings)
        assert plan.config.rope_parameters == plan.architecture.source_config.rope_parameters
        assert (plan.looks_back, plan.warnings) == (1028, ())
    scaled = plan_conversion(DECODER, **sinks, sink_positions="text", max_length=131_072).config.rope_parameters
    assert scaled["full_attention"]["factor"] == 4.0
    assert "factor" not in scaled["sliding_attention"]


def test_conversion_measures_thousands_of_tokens_in_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, load_checked = list[Path](), load.load_checked

    def counted(model_class: Any, folder: Path, *arguments: Any, **more: Any) -> Any:
        loads.append(folder)
        return load_checked(model_class, folder, *arguments, **more)

    for module in (load, check):
        monkeypatch.setattr(module, "load_checked", counted)
    started = time.process_time()
    report = convert_checkpoint(DECODER, tmp_path / "long", mechanism="auto")
    assert time.process_time() - started < PROCESSOR_SECONDS
    assert report.plan["positions"] == "rope:none"
    # as the result's class, as its own, the result
    assert {folder: loads.count(folder) for folder in loads} == {DECODER: 2, loads[-1]: 1}
    loss = check_of(report, "language-model loss by position")
    buckets = {bucket["to"]: bucket for bucket in loss.values["buckets"]}
    assert [*buckets] == [256, 512, 1024, 2048, 4096]
    assert sum(bucket["predicted"] for bucket in buckets.values()) > 2000
    assert all(
        buckets[end]["result"] == pytest.approx(buckets[end]["source_on_chunks"], abs=1e-3) for end in (256, 512, 1024)
    )
    assert 2 < loss.values["change"]["before"] < 4
    assert abs(loss.values["change"]["change"]) < 0.2


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
    report = read_json(streaming, "conversion_report.json")
    assert "failed" not in {check["status"] for check in report["checks"]}
    source, result = (read_json(folder) for folder in (DECODER, streaming))
    assert result["rope_parameters"] == source["rope_parameters"]


def test_text_beyond_the_trained_length_is_continued_from_a_cache_of_constant_size(
    model: Any, ids: torch.Tensor
) -> None:
    sizes = []
    for tokens in (4096, model.config.max_position_embeddings + 256):
        done = model.generate(
            ids[:, :tokens], max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
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
