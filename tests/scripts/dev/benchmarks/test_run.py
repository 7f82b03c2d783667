"""The benchmark: equality comes first, what is stored is what was measured, and a wrong implementation is found out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from scripts.dev.benchmarks import definition, verify
from scripts.dev.benchmarks import implementations as registry
from scripts.dev.benchmarks.app import app
from scripts.dev.benchmarks.case import AttentionInputs, Case
from scripts.dev.benchmarks.implementations import Implementation, register_implementation
from scripts.dev.benchmarks.run import run_attention, run_model
from tests.cases import every_case
from tests.grids import pairwise

SMALL = Case("longformer", {"window": 16}, heads=2, head_dim=8, layers=1)


@every_case(("mechanism", "causal", "dtype"), pairwise(["window", "longformer"], [False, True], ["fp32", "bf16"]))
def test_benchmarked_implementations_equal_the_definition(mechanism: str, causal: bool, dtype: str) -> None:
    case = SMALL.at(mechanism=mechanism, causal=causal, dtype=dtype, num_globals=3 * (mechanism == "longformer"))
    result = run_attention(case, [64, 96], ["sdpa"], repeats=1)
    assert result.equal, result.checks
    assert {check.implementation for check in result.checks} == {timing.implementation for timing in result.timings} == {"longattn", "sdpa"}


def test_benchmark_of_the_backward_pass_compares_gradients() -> None:
    result = run_attention(SMALL.at(backward=True), [64], ["sdpa", "flex"], repeats=1)
    assert result.equal, result.checks
    assert {check.what for check in result.checks} == {"output", "gradients of q, k, v"}
    assert result.left_out[0]["implementation"] == "flex"


def test_benchmark_leaves_out_longformer_for_one_sided_windows() -> None:
    result = run_model(SMALL.at(causal=True, head_dim=16), [64], ["hf-longformer"], repeats=1)
    assert {left["implementation"] for left in result.left_out} == {"hf-longformer"}


@pytest.fixture
def wrong_implementation() -> str:
    @register_implementation("attention", "slightly-wrong")
    class SlightlyWrong(Implementation):
        summary = "forgets the last key"

        def __init__(self, inputs: AttentionInputs) -> None:
            self.qkv = self.leaves = inputs.qkv
            self.upstream = inputs.upstream_heads()

        def forward(self) -> Tensor:
            q, k, v = self.qkv
            return torch.nn.functional.scaled_dot_product_attention(q, k[:, :, :-1], v[:, :, :-1])

    yield SlightlyWrong.name
    del registry._IMPLEMENTATIONS["attention"]["slightly-wrong"]


def test_benchmark_does_not_time_a_wrong_implementation(wrong_implementation: str) -> None:
    result = run_attention(SMALL, [64, 96], [wrong_implementation], repeats=1)
    assert not result.equal
    assert not result.timings


def test_benchmark_exits_with_one_for_a_wrong_implementation(wrong_implementation: str, tmp_path: Path) -> None:
    arguments = [
        "attention",
        "--lengths",
        "64",
        "--heads",
        "2",
        "--head-dim",
        "8",
        "--against",
        wrong_implementation,
        "--output-dir",
        str(tmp_path),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "differs from the definition" in done.output


@pytest.mark.parametrize("backward", [pytest.param(False, marks=pytest.mark.slow), True])
def test_benchmarked_models_equal_the_plain_one_under_the_dense_mask(backward: bool) -> None:
    result = run_model(
        SMALL.at(backward=backward, head_dim=16), [48, 64], ["sdpa", "hf-longformer"], repeats=1, processor_time=not backward
    )
    assert result.equal, result.checks
    assert result.kind == ("train" if backward else "model")
    assert result.clock == ("time" if backward else "processor time")
    assert {timing.implementation for timing in result.timings} == {"longattn", "sdpa", "hf-longformer"}


def test_attention_benchmark_stores_json(tmp_path: Path) -> None:
    arguments = ["attention", "--lengths", "32,64", "--option", "window=16", "--heads", "2", "--head-dim", "8", "--repeats", "2"]
    done = CliRunner().invoke(app, [*arguments, "--against", "sdpa", "--output-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    [stored] = tmp_path.glob("*.json")
    record = json.loads(stored.read_text())
    assert record["equal"] is True
    assert record["lengths"] == [32, 64]
    assert {"processor", "cores", "threads", "torch", "transformers", "date"} <= set(record["machine"])
    assert len(record["timings"]) == 4
    assert all(len(timing["rounds_ms"]) == 2 for timing in record["timings"])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--against", "spda"], "Did you mean 'sdpa'?"),
        (["--mechanism", "windw"], "Did you mean 'window'?"),
        (["--option", "window"], "name=value"),
        (["--lengths", "a lot"], "whole numbers"),
        (["--dtype", "fp8"], "choose one of fp32"),
        (["--lengths", "0"], "at least one length"),
        (["--lengths", "8", "--globals", "9"], "between 0 and the length"),
    ],
)
def test_attention_benchmark_refuses_bad_input_in_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    start = [] if "--lengths" in arguments else ["--lengths", "8"]
    done = CliRunner().invoke(app, ["attention", *start, *arguments, "--output-dir", str(tmp_path)])
    assert done.exit_code == 1
    assert sentence in done.output
    assert not list(tmp_path.iterdir())


def test_benchmark_checks_mechanisms_without_a_mask_at_short_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (definition, verify):
        monkeypatch.setattr(module, "DENSE_LENGTH", 96)
    case = Case("lsh", {"bucket_size": 8}, heads=2, head_dim=8)
    result = run_attention(case, [192], ["sdpa"], repeats=1)
    assert {check.length for check in result.checks} == {96}
    assert result.equal
