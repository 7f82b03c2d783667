"""Measure the time of each candidate in one layer at the target length, on this machine.

It is the time of the mechanism alone, for one sequence of projected queries, keys and values, without gradients. All
candidates run in turns, and the fastest run of each counts.
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
"""Number of further runs of each candidate."""
SLOW_SECONDS = 2.0
"""A candidate is run again if its first run takes fewer seconds."""


def layer_seconds(
    candidates: Iterable[Candidate],
    shape: ModelShape,
    length: int,
    device: torch.device,
    grid: Grid | None = None,
    progress: Progress = silent,
) -> tuple[dict[str, float], dict[str, str]]:
    """Measure the time of each candidate in one layer.

    Args:
        candidates: the candidates, all different.
        shape: shape of the model: its heads and widths, and whether it is causal.
        length: number of tokens of the sequence.
        device: device for the measurements.
        grid: grid of the tokens, for images.
        progress: called with a sentence before each candidate.

    Returns:
        A mapping of candidates (as text) to seconds for one layer, and a mapping of candidates (as text) to the reason
        why they cannot run at this length.

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
    """A function that runs the candidate's mechanism once on random inputs. Arguments as for :func:`layer_seconds`."""
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
    random: dict[str, Any] = {"generator": generator, "device": device}
    q, k, v = (
        torch.randn(1, heads, length, shape.head_dim, **random)
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    hidden = None
    if mechanism.capabilities.takes_hidden_states:
        hidden = torch.randn(1, length, shape.hidden, **random)
    call = AttentionCall(causal=shape.causal, hidden_states=hidden, grid=grid)
    return partial(run_batch, mechanism, q, k, v, call)


def _timed(run: Callable[[], Tensor]) -> float:
    """Seconds of a run.

    With a single thread on the CPU, they are the CPU time of this process, which other processes do not change.
    """
    one_thread = torch.get_num_threads() == 1 and not torch.accelerator.is_available()
    clock = time.process_time if one_thread else time.perf_counter
    start = clock()
    with torch.no_grad():
        result = run()
    if result.device.type != "cpu":
        torch.accelerator.synchronize()
    return clock() - start
