"""Time of each candidate in one layer at the target length, measured on this machine.

It is the time of the mechanism for one sequence, from projected queries, keys and values to the output, without
gradients. Candidates take turns, and the fastest turn counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
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


def layer_seconds(
    candidates: Iterable[Candidate],
    shape: ModelShape,
    length: int,
    device: torch.device,
    grid: Grid | None = None,
    progress: Progress = silent,
) -> tuple[dict[str, float], dict[str, str]]:
    """Time of each candidate in one layer.

    Args:
        candidates: all different.
        shape: shape of the model.
        length: length in tokens.
        device: device for the measurements.
        grid: grid of the tokens, for images.
        progress: called with a sentence before each candidate.

    Returns:
        Candidate as text -> seconds of one layer, and candidate as text -> why it cannot run at this length.

    Raises:
        LongAttentionError: a candidate from the user cannot run.
    """
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    quick: dict[str, Callable[[], Tensor]] = {}
    for candidate in candidates:
        name = str(candidate)
        try:
            run = _prepared(candidate, shape, length, device, grid)
        except LongAttentionError as error:
            if candidate.by_user:
                raise
            refused[name] = str(error)
            continue
        progress(f"cost of {name}")
        try:
            seconds[name] = _timed(run)
        except FAILURES as error:
            refused[name] = f"It failed at {length:,} tokens: {in_a_line(error)}."
            continue
        if seconds[name] < SLOW_SECONDS:
            quick[name] = run
    for _ in range(TURNS):
        for name, run in quick.items():
            seconds[name] = min(seconds[name], _timed(run))
    return seconds, refused


def _prepared(
    candidate: Candidate, shape: ModelShape, length: int, device: torch.device, grid: Grid | None
) -> Callable[[], Tensor]:
    """A function that runs the candidate once."""
    generator = torch.Generator(device).manual_seed(0)
    mechanism = mechanism_from(
        candidate.mechanism,
        candidate.options,
        num_heads=shape.heads,
        head_dim=shape.head_dim,
        hidden_size=shape.hidden,
        max_length=length,
        generator=generator,
    )
    check_form(mechanism, shape.causal, "the model")
    mechanism = mechanism.to(device).eval()
    drawn: dict[str, Any] = {"generator": generator, "device": device}
    q, k, v = (
        torch.randn(1, heads, length, shape.head_dim, **drawn)
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    hidden = None
    if mechanism.capabilities.takes_hidden_states:
        hidden = torch.randn(1, length, shape.hidden, **drawn)
    call = AttentionCall(causal=shape.causal, hidden_states=hidden, grid=grid)
    return partial(run_batch, mechanism, q, k, v, call)


def _timed(run: Callable[[], Tensor]) -> float:
    """Seconds of a run. With a single CPU thread, the CPU time of this process, so other processes do not affect
    it."""
    alone = torch.get_num_threads() == 1 and not torch.accelerator.is_available()
    clock = time.process_time if alone else time.perf_counter
    start = clock()
    with torch.no_grad():
        result = run()
    if result.device.type != "cpu":
        torch.accelerator.synchronize()
    return clock() - start
