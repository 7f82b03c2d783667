"""Cost of each candidate in one layer at the target length, measured on this machine.

Seconds: time of the mechanism for one sequence, from projected queries, keys and values to the output, without
gradients. Candidates take turns, and the fastest turn counts. Bytes of a decoder: the decode cache of one layer; a
design needs the sum over layers. Bytes of an encoder: memory of attention besides inputs and output. The next layer
reuses it, so a design needs the maximum over layers.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engines.call import AttentionCall
from ..engines.token_grid import Grid
from ..errors import LongAttentionError, in_a_line
from ..evaluation.flops import ModelShape, state_bytes
from ..functional import run_batch
from ..inspect import Candidate
from ..inspect.attention import Progress, silent
from ..mechanisms.common.registry import mechanism_from
from ..mechanisms.common.shared_options import check_form

FAILURES = (LongAttentionError, RuntimeError, MemoryError)
"""Errors during a measurement that exclude a candidate from the search."""
TURNS = 6
SLOW_SECONDS = 2.0
"""Maximum seconds of a candidate's first run for which it is run again."""


class LayerCost(NamedTuple):
    """The cost of one layer for one sequence. ``bytes`` is ``None`` if it was not measured."""

    seconds: float
    bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, without bytes that were not measured."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class LayerCosts:
    """Costs of candidates in one setting.

    Args:
        shape: shape of the model.
        length: length in tokens.
        device: device for the measurements.
        grid: grid of the tokens, for images.
    """

    def __init__(self, shape: ModelShape, length: int, device: torch.device, grid: Grid | None = None) -> None:
        self.shape, self.length, self.device, self.grid = shape, length, device, grid
        self.known: dict[str, LayerCost] = {}
        self.refused: dict[str, str] = {}

    def measure(
        self, candidates: Iterable[Candidate], progress: Progress = silent, memory: bool = False
    ) -> Mapping[str, LayerCost]:
        """Candidate as text -> cost. A candidate that cannot run at this length is listed in :attr:`refused` instead.

        memory: also measure an encoder's bytes, which takes about as long again.

        Raises:
            LongAttentionError: a candidate from the user cannot run.
        """
        runs: dict[str, Callable[[], Tensor]] = {}
        for candidate in candidates:
            name = str(candidate)
            if name in runs:
                continue
            try:
                run, size = self._prepare(candidate)
            except LongAttentionError as error:
                if candidate.by_user:
                    raise
                self.refused[name] = str(error)
                continue
            progress(f"cost of {name}")
            try:
                first = _timed(run)
                if memory and not self.shape.causal:
                    size = _working_bytes(run, self.device)
            except FAILURES as error:
                self.refused[name] = f"It failed at {self.length:,} tokens: {in_a_line(error)}."
                continue
            runs[name], self.known[name] = run, LayerCost(first, size)
        quick = {name: run for name, run in runs.items() if self.known[name].seconds < SLOW_SECONDS}
        for _ in range(TURNS):
            for name, run in quick.items():
                cost = self.known[name]
                self.known[name] = LayerCost(min(cost.seconds, _timed(run)), cost.bytes)
        return self.known

    def _prepare(self, candidate: Candidate) -> tuple[Callable[[], Tensor], int | None]:
        """A function that runs the candidate once, and the bytes of its cache if it decodes."""
        shape, generator = self.shape, torch.Generator(self.device).manual_seed(0)
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
        hidden = (
            torch.randn(1, self.length, shape.hidden, **drawn) if mechanism.capabilities.takes_hidden_states else None
        )
        call = AttentionCall(causal=shape.causal, hidden_states=hidden, grid=self.grid)

        def run() -> Tensor:
            with torch.no_grad():
                return run_batch(mechanism, q, k, v, call)

        return run, state_bytes(mechanism, shape, self.length) if shape.causal else None


def _timed(run: Callable[[], Tensor]) -> float:
    """Seconds of a run. With a single CPU thread, the CPU time of this process, so other processes do not affect
    it."""
    clock = (
        time.process_time
        if torch.get_num_threads() == 1 and not torch.accelerator.is_available()
        else time.perf_counter
    )
    start = clock()
    result = run()
    if result.device.type != "cpu":
        torch.accelerator.synchronize()
    return clock() - start


def _working_bytes(run: Callable[[], Tensor], device: torch.device) -> int:
    """Peak memory of a run in bytes, without inputs and output."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        return max(0, torch.cuda.max_memory_allocated(device) - before - result.nbytes)

    # The profiler's C++ code writes lines to stderr that no setting turns off, so nothing appears there while it runs.
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            result = run()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    recorded: Any = profile.profiler
    changes = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    in_use = accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns()))
    return max(0, max(in_use, default=0) - result.nbytes)
