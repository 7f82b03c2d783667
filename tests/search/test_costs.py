"""Measured costs of one layer."""

from __future__ import annotations

import pytest
import torch

from hf_longattn.errors import LongAttentionError
from hf_longattn.evaluation.flops import ModelShape
from hf_longattn.inspect import Candidate
from hf_longattn.search import costs
from hf_longattn.search.costs import LayerCost, LayerCosts

CPU = torch.device("cpu")


def shape(causal: bool = False) -> ModelShape:
    return ModelShape(
        layers=2, heads=2, kv_heads=1, head_dim=16, hidden=32, intermediate=64, causal=causal, matrix_parameters=0, element_bytes=4
    )  # fmt: skip


def read(*texts: str) -> list[Candidate]:
    return [Candidate.read(text) for text in texts]


def test_a_window_is_cheaper_than_full_attention() -> None:
    result = LayerCosts(shape(), 2048, CPU).measure(read("window:window=64", "full"))
    assert 0 < result["window:window=64"].seconds < result["full"].seconds
    assert result["full"].bytes is None


def test_memory_of_an_encoder_is_what_attention_needs_beside_inputs_and_output(capfd: pytest.CaptureFixture[str]) -> None:
    shorter, longer = (
        LayerCosts(shape(), length, CPU).measure(read("window:window=64", "block_top_k:num_blocks=2"), memory=True)
        for length in (512, 1024)
    )
    for name, cost in shorter.items():
        assert 1.5 * (cost.bytes or 0) < (longer[name].bytes or 0) < 1024 * 1024 * 2 * 4, name
        assert cost.bytes
    assert capfd.readouterr().err == ""


def test_memory_of_a_decoder_is_its_state() -> None:
    result = LayerCosts(shape(causal=True), 512, CPU).measure(read("window:window=64", "full", "linear"))
    token = 2 * 1 * 16 * 4
    assert result["full"].bytes == 512 * token
    assert result["window:window=64"].bytes == 64 * token
    assert (result["linear"].bytes or 0) < 64 * token


def test_candidates_that_cannot_run_are_left_out_unless_the_user_gave_them() -> None:
    costs = LayerCosts(shape(), 256, CPU)
    wrong = Candidate("window", {"window": 64, "relative": "no_such"})
    with pytest.raises(LongAttentionError):
        costs.measure([Candidate(wrong.mechanism, wrong.options, by_user=True)])
    assert set(costs.measure([wrong, Candidate("full")])) == {"full"}
    assert list(costs.refused) == [str(wrong)]
    assert isinstance(costs.known["full"], LayerCost)


@pytest.mark.parametrize(("threads", "expected"), [(1, 2.0), (2, 5.0)])
def test_one_thread_is_timed_by_its_processor_time(threads: int, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes lengthen only the time that passes."""
    monkeypatch.setattr(costs.torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(costs.torch.accelerator, "is_available", lambda: False)
    for clock, seconds in (("process_time", (1.0, 3.0)), ("perf_counter", (1.0, 6.0))):
        monkeypatch.setattr(costs.time, clock, iter(seconds).__next__)
    assert costs._timed(lambda: torch.zeros(1)) == expected
