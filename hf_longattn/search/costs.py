"""Time of each candidate in one layer at the target length, measured on this machine.

It is the time of the mechanism for one sequence, from projected queries, keys and values to the output, without
gradients. Candidates take turns, and the fastest turn counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..engines.call import AttentionCall
from ..engines.token_grid import Grid
from ..errors import LongAttentionError, in_a_line
from ..functional import run_batch
from ..inspect import Candidate
from ..inspect.attention import Progress, silent
from ..mechanisms.common.registry import mechanism_from
from ..mechanisms.common.shared_options import check_form
from ..modeling.costs import ModelShape

FAILURES = (LongAttentionError, RuntimeError, MemoryError)
"""Errors during a measurement that exclude a candidate from the search."""
TURNS = 6
SLOW_SECONDS = 2.0
"""Maximum seconds of a candidate's first run for which it is run again."""


class LayerCosts:
    """Times of candidates in one setting.

    Args:
        shape: shape of the model.
        length: length in tokens.
        device: device for the measurements.
        grid: grid of the tokens, for images.
    """

    def __init__(self, shape: ModelShape, length: int, device: torch.device, grid: Grid | None = None) -> None:
        self.shape, self.length, self.device, self.grid = shape, length, device, grid
        self.known: dict[str, float] = {}
        self.refused: dict[str, str] = {}

    def measure(self, candidates: Iterable[Candidate], progress: Progress = silent) -> Mapping[str, float]:
        """Candidate as text -> seconds of one layer. A candidate that cannot run at this length is listed in
        :attr:`refused` instead.

        Raises:
            LongAttentionError: a candidate from the user cannot run.
        """
        runs: dict[str, Callable[[], Tensor]] = {}
        for candidate in candidates:
            name = str(candidate)
            if name in runs:
                continue
            try:
                run = self._prepare(candidate)
            except LongAttentionError as error:
                if candidate.by_user:
                    raise
                self.refused[name] = str(error)
                continue
            progress(f"cost of {name}")
            try:
                self.known[name] = _timed(run)
            except FAILURES as error:
                self.refused[name] = f"It failed at {self.length:,} tokens: {in_a_line(error)}."
                continue
            runs[name] = run
        quick = {name: run for name, run in runs.items() if self.known[name] < SLOW_SECONDS}
        for _ in range(TURNS):
            for name, run in quick.items():
                self.known[name] = min(self.known[name], _timed(run))
        return self.known

    def _prepare(self, candidate: Candidate) -> Callable[[], Tensor]:
        """A function that runs the candidate once."""
        shape = self.shape
        generator = torch.Generator(self.device).manual_seed(0)
        mechanism = mechanism_from(
            candidate.mechanism,
            candidate.options,
            num_heads=shape.heads,
            head_dim=shape.head_dim,
            hidden_size=shape.hidden,
            max_length=self.length,
            generator=generator,
        )
        check_form(mechanism, shape.causal, "the model")
        mechanism = mechanism.to(self.device).eval()
        drawn: dict[str, Any] = {"generator": generator, "device": self.device}
        q, k, v = (
            torch.randn(1, heads, self.length, shape.head_dim, **drawn)
            for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
        )
        hidden = None
        if mechanism.capabilities.takes_hidden_states:
            hidden = torch.randn(1, self.length, shape.hidden, **drawn)
        call = AttentionCall(causal=shape.causal, hidden_states=hidden, grid=self.grid)

        def run() -> Tensor:
            with torch.no_grad():
                return run_batch(mechanism, q, k, v, call)

        return run


def _timed(run: Callable[[], Tensor]) -> float:
    """Seconds of a run. With a single CPU thread, the CPU time of this process, so other processes do not affect
    it."""
    alone = torch.get_num_threads() == 1 and not torch.accelerator.is_available()
    clock = time.process_time if alone else time.perf_counter
    start = clock()
    result = run()
    if result.device.type != "cpu":
        torch.accelerator.synchronize()
    return clock() - start
