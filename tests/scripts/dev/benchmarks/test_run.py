"""The benchmark: equality comes first, what is stored is what was measured, and a wrong implementation is found out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from scripts.dev.benchmarks import attention
from scripts.dev.benchmarks.app import app
from scripts.dev.benchmarks.attention import ATTENTION, Implementation, OnHeads
from scripts.dev.benchmarks.case import Case
from scripts.dev.benchmarks.run import Timing, run_benchmark, time_in_turn, times_faster
from tests.cases import every_case
from tests.grids import pairwise

SMALL = Case("longformer", {"window": 16}, heads=2, head_dim=8, layers=1)


@every_case(("mechanism", "causal", "dtype"), pairwise(["window", "longformer"], [False, True], ["fp32", "bf16"]))
def test_benchmarked_implementations_equal_the_definition(mechanism: str, causal: bool, dtype: str) -> None:
    case = SMALL.at(mechanism=mechanism, causal=causal, dtype=dtype, num_globals=3 * (mechanism == "longformer"))
    result = run_benchmark("attention", case, [64, 96], ["sdpa"], repeats=1)
    assert result.equal, result.checks
    assert {check.implementation for check in result.checks} == {timing.implementation for timing in result.timings} == {"longattn", "sdpa"}


def test_benchmark_of_the_backward_pass_compares_gradients() -> None:
    result = run_benchmark("attention", SMALL.at(backward=True), [64], ["sdpa", "flex"], repeats=1)
    assert result.equal, result.checks
    assert {check.what for check in result.checks} == {"output", "gradients of q, k, v"}
    assert result.left_out[0]["implementation"] == "flex"


def test_benchmark_leaves_out_longformer_for_one_sided_windows() -> None:
    result = run_benchmark("model", SMALL.at(causal=True, head_dim=16), [64], ["hf-longformer"], repeats=1)
    assert {left["implementation"] for left in result.left_out} == {"hf-longformer"}


class SlightlyWrong(OnHeads):
    """Forgets the last key."""

    name = "slightly-wrong"

    def forward(self) -> Tensor:
        q, k, v = self.leaves
        return torch.nn.functional.scaled_dot_product_attention(q, k[:, :, :-1], v[:, :, :-1])


@pytest.fixture
def wrong_implementation(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(ATTENTION, SlightlyWrong.name, SlightlyWrong)
    return SlightlyWrong.name


def test_benchmark_does_not_time_a_wrong_implementation(wrong_implementation: str) -> None:
    result = run_benchmark("attention", SMALL, [64, 96], [wrong_implementation], repeats=1)
    assert not result.equal
    assert not result.timings


def test_benchmark_exits_with_one_for_a_wrong_implementation(wrong_implementation: str, tmp_path: Path) -> None:
    shape = ["--lengths", "64", "--heads", "2", "--head-dim", "8"]
    arguments = ["attention", *shape, "--against", wrong_implementation, "--output-dir", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "differs from the definition" in done.output


@pytest.mark.parametrize("backward", [pytest.param(False, marks=pytest.mark.slow), True])
def test_benchmarked_models_equal_the_plain_one_under_the_dense_mask(backward: bool) -> None:
    case, kind = SMALL.at(backward=backward, head_dim=16), "train" if backward else "model"
    result = run_benchmark(kind, case, [48, 64], ["sdpa", "hf-longformer"], repeats=1, processor_time=not backward)
    assert result.equal, result.checks
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
    monkeypatch.setattr(attention, "DENSE_LENGTH", 96)
    case = Case("lsh", {"bucket_size": 8}, heads=2, head_dim=8)
    result = run_benchmark("attention", case, [192], ["sdpa"], repeats=1)
    assert {check.length for check in result.checks} == {96}
    assert result.equal


def noted(called: str, calls: list[str]) -> Implementation:
    class Noted(Implementation):
        name = called

        def forward(self) -> Tensor:
            calls.append(called)
            return torch.zeros(())

    return Noted()


def test_timed_implementations_take_turns_after_a_warm_pass() -> None:
    calls: list[str] = []
    timings = time_in_turn([noted("a", calls), noted("b", calls)], 8, backward=False, repeats=2)
    assert calls == ["a", "b", *["a", "a", "b", "b"] * 2]
    assert [(timing.implementation, len(timing.rounds)) for timing in timings] == [("a", 2), ("b", 2)]


def test_ratio_of_times_survives_a_machine_that_slows_down() -> None:
    ours, other = Timing("ours", 8, (1.0, 10.0, 100.0)), Timing("other", 8, (2.0, 20.0, 200.0))
    assert times_faster(ours, other) == 2.0
