"""What tests of engines compare: outputs with gradients, and paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_longattn.engines.dispatch import PathChoice, observe


def assert_equal_with_gradients(
    found: Tensor,
    expected: Tensor,
    inputs: Sequence[Tensor],
    rows: Tensor | None = None,
    *,
    atol: float = 1e-12,
    gradients: float = 1e-12,
    rtol: float = 0.0,
) -> None:
    """Two outputs ``(B, H, N, D)`` are equal at the real ``rows (B, N)``, all by default, and so are the gradients of
    ``inputs`` for random gradients there."""
    seen = torch.ones((), dtype=torch.bool) if rows is None else rows[:, None, -found.shape[2] :, None]
    torch.testing.assert_close(found * seen, expected * seen, atol=atol, rtol=0)
    upstream = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(2)) * seen
    of_found, of_expected = (
        torch.autograd.grad(x, inputs, upstream.to(x.dtype), materialize_grads=True) for x in (found, expected)
    )
    torch.testing.assert_close(of_found, of_expected, atol=gradients, rtol=rtol)


def choices_of(run: Callable[[], Any]) -> tuple[Any, list[PathChoice]]:
    """The result of a call, and the paths that it takes with the reasons against others."""
    choices: list[PathChoice] = []
    with observe(lambda _, choice: choices.append(choice)):
        return run(), choices


def paths_of(run: Callable[[], Any]) -> tuple[Any, list[str]]:
    """The result of a call, and the names of its paths."""
    result, choices = choices_of(run)
    return result, [choice.path for choice in choices]
