"""Timing: implementations take turns, and the ratio is that within a round."""

from __future__ import annotations

import torch
from torch import Tensor

from scripts.dev.benchmarks.implementations import Implementation
from scripts.dev.benchmarks.timing import Timing, time_in_turn, times_faster


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
