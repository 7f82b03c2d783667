"""The conversion of a real decoder, Gemma 3 270M: what it measures, in how much time, and how often it loads."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from hf_longattn.conversion import check, convert_checkpoint, plan_conversion, source_models
from tests.reports import check_of

FOLDER = Path(os.environ.get("HF_LONGATTN_GEMMA", "build/real/gemma-3-270m"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FOLDER / "config.json").is_file(), reason=f"{FOLDER} is missing; type make real-decoder"),
]
PROCESSOR_SECONDS = 180
"""Maximum processor time of a conversion: 90 seconds on two cores."""


def test_conversion_of_a_real_decoder_measures_thousands_of_tokens_in_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, load = list[Path](), source_models.load_checked

    def counted(model_class: Any, folder: Path, *arguments: Any, **more: Any) -> Any:
        loads.append(folder)
        return load(model_class, folder, *arguments, **more)

    for module in (source_models, check):
        monkeypatch.setattr(module, "load_checked", counted)
    started = time.process_time()
    report = convert_checkpoint(FOLDER, tmp_path / "long", mechanism="auto")
    assert time.process_time() - started < PROCESSOR_SECONDS
    assert report.plan["positions"] == "rope:none"
    assert {folder: loads.count(folder) for folder in loads} == {FOLDER: 2, loads[-1]: 1}  # as the result's class, as its own, the result
    loss = check_of(report, "language-model loss by position")
    buckets = {bucket["to"]: bucket for bucket in loss.values["buckets"]}
    assert [*buckets] == [256, 512, 1024, 2048, 4096]
    assert sum(bucket["predicted"] for bucket in buckets.values()) > 2000
    assert all(buckets[end]["result"] == pytest.approx(buckets[end]["source_on_chunks"], abs=1e-3) for end in (256, 512, 1024))
    assert 2 < loss.values["change"]["before"] < 4
    assert abs(loss.values["change"]["change"]) < 0.2


def test_plan_of_a_real_decoder_keeps_its_windows() -> None:
    plan = plan_conversion(FOLDER, mechanism="auto")
    layers = [plan.attention.for_layer(number)[1] for number in range(18)]
    assert [number for number, options in enumerate(layers) if (options["window"], options.get("num_sinks")) == (1024, 4)] == [5, 11, 17]
    assert all(options["window"] == 512 for number, options in enumerate(layers) if number not in (5, 11, 17))
    assert "layers with a window of their own keep it" in plan.to_dict()["choice"]["reason"]


def test_sinks_leave_the_rotations_of_a_real_decoder_as_they_are(tmp_path: Path) -> None:
    sinks = {"mechanism": "window", "window": 1024, "num_sinks": 4}
    for settings in (sinks, {**sinks, "max_length": 131_072}):
        plan = plan_conversion(FOLDER, **settings)
        assert plan.config.rope_parameters == plan.architecture.source_config.rope_parameters
        assert (plan.looks_back, plan.warnings) == (1028, ())
    scaled = plan_conversion(FOLDER, **sinks, sink_positions="text", max_length=131_072).config.rope_parameters
    assert scaled["full_attention"]["factor"] == 4.0
    assert "factor" not in scaled["sliding_attention"]
