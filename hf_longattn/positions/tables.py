"""Extend a learned position table to more positions without training.

``tile``         row i of the new table is row i mod P of the old one. Neighbouring positions keep exactly the difference the model was
                 trained with, except at the seams, which is nearly all that attention within a window sees (Longformer, section 5:
                 https://arxiv.org/abs/2004.05150).
``interpolate``  the old positions are stretched over the new length, both ends fixed, linear in between (Chen et al. 2023,
                 https://arxiv.org/abs/2306.15595). Every distance shrinks by the factor, so this needs training.
``random``       the old rows are kept; new ones are drawn from a normal distribution with the table's standard deviation, as before
                 training: the negative control.

``none``         every row is zero: no absolute positions, for use with relative ones. Needs training.
``alibi``        the same, with ALiBi (:mod:`hf_longattn.positions.relative`) instead.

``sinusoidal``   for tables that are computed, not learned (Vaswani et al. 2017, section 3.5; Pegasus): the formula continues.

Rows below ``offset`` are not positions (RoBERTa's table starts with two such rows): they are kept once, in place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from hf_longattn.errors import PositionError, nearest

DROPPED = ("none", "alibi")
"""Strategies that discard the table: all rows are zeros."""
SINUSOIDAL = "sinusoidal"
SINUSOIDAL_ERROR = 1e-2
"""Above bf16 rounding (4e-3), below the difference between neighbouring positions."""
SHORTER = ("truncate", "interpolate")
"""Ways to shorten a table: keep the first rows, or the rows from which interpolation best restores all of them."""


def _tile(old: Tensor, rows: int, seed: int, std: float | None) -> Tensor:
    return old[torch.arange(rows) % old.shape[0]]


def _interpolate(old: Tensor, rows: int, seed: int, std: float | None) -> Tensor:
    if old.shape[0] == 1:
        return old.expand(rows, -1)
    channels_first = old.to(torch.float64).T.unsqueeze(0)  # rounds each row once, so that the inverse is exact
    stretched = functional.interpolate(channels_first, size=rows, mode="linear", align_corners=True)
    return stretched[0].T.to(old.dtype)


def _before_interpolation(long: Tensor, rows: int) -> Tensor:
    """The table of ``rows`` rows, both ends fixed, whose interpolation is nearest to ``long`` (least squares): it inverts ``_interpolate``.

    The normal equations of linear interpolation are tridiagonal, so a single elimination from row to row solves them.
    """
    if rows <= 2 or long.is_meta:  # on the meta device only the shape matters
        return long[[0, -1][:rows]] if rows <= 2 else long[:rows]
    target = long.to(torch.float64)
    at = torch.arange(len(long), dtype=torch.float64) * (rows - 1) / (len(long) - 1)
    below = at.floor().long().clamp(max=rows - 2)
    share = at - below  # of the row above
    diagonal = torch.zeros(rows, dtype=torch.float64).index_add_(0, below, (1 - share) ** 2).index_add_(0, below + 1, share**2)
    off_diagonal = torch.zeros(rows, dtype=torch.float64).index_add_(0, below, share * (1 - share))  # between a row and the one above
    right_side = torch.zeros(rows, target.shape[1], dtype=torch.float64)
    right_side.index_add_(0, below, (1 - share)[:, None] * target).index_add_(0, below + 1, share[:, None] * target)
    right_side[0], right_side[-1] = target[0], target[-1]
    diagonal[0], first, last = 1.0, float(off_diagonal[0]), float(off_diagonal[rows - 2])
    right_side[1] -= first * right_side[0]
    right_side[rows - 2] -= last * right_side[-1]
    for row in range(2, rows - 1):
        factor = off_diagonal[row - 1] / diagonal[row - 1]
        diagonal[row] -= factor * off_diagonal[row - 1]
        right_side[row] -= factor * right_side[row - 1]
    for row in range(rows - 2, 0, -1):
        if row < rows - 2:
            right_side[row] -= off_diagonal[row] * right_side[row + 1]
        right_side[row] /= diagonal[row]
    return right_side.to(long.dtype)


def _random(old: Tensor, rows: int, seed: int, std: float | None) -> Tensor:
    values = old.to(torch.float32)
    std = float(values.std()) if std is None else std
    drawn = torch.randn(rows - old.shape[0], old.shape[1], generator=torch.Generator().manual_seed(seed)) * std
    return torch.cat([old, drawn.to(old.dtype)])


def _sinusoidal(old: Tensor, rows: int, seed: int, std: float | None) -> Tensor:
    computed = sinusoids(rows, old.shape[1])
    error = float((computed[: old.shape[0]] - old.to(torch.float32)).abs().max())
    if error > SINUSOIDAL_ERROR:
        raise PositionError(
            f"The source's position table differs from the sinusoids that its architecture computes by up to {error:.1e}, so it cannot be "
            "extended; was it trained with modified code?"
        )
    return torch.cat([old, computed[old.shape[0] :].to(old.dtype)])


STRATEGIES: dict[str, Callable[[Tensor, int, int, float | None], Tensor]] = {
    "tile": _tile,
    "interpolate": _interpolate,
    "random": _random,
}


def sinusoids(rows: int, width: int) -> Tensor:
    """``(rows, width)`` fp32: row p is sin(p / 10000^(2i/width)) for i < width/2, then the cosines (Vaswani et al. 2017, section 3.5)."""
    return sinusoids_at(torch.arange(rows), width).to(torch.float32)


def sinusoids_at(positions: Tensor, width: int) -> Tensor:
    """``(N, width)`` float64: the same rows for whole numbers ``positions (N,)``, which may be negative."""
    frequency = 10000.0 ** (-2 * torch.arange((width + 1) // 2, dtype=torch.float64, device=positions.device) / width)
    angle = positions.to(torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle[:, : width // 2].cos()], dim=1)


def keeps_old_rows(strategy: str) -> bool:
    """Whether the old rows, and so the outputs up to the old length, are unchanged."""
    return strategy != "interpolate" and strategy not in DROPPED


def extend_table(
    weight: Tensor,
    new_rows: int,
    *,
    offset: int,
    strategy: str = "tile",
    seed: int = 0,
    std: float | None = None,
) -> Tensor:
    """A position table with ``new_rows`` rows, made from the trained table ``weight``.

    Args:
        weight: ``(P, d)``, any floating dtype, on the CPU; not changed.
        new_rows: rows of the result, including the ``offset`` special rows (4,098 for a RoBERTa of 4,096 tokens).
        offset: number of leading rows that are not positions; they are copied once.
        strategy: "tile", "interpolate", "random", "none", "alibi" or "sinusoidal" (see the module's docstring).
        seed: for "random"; the same seed gives the same rows on every machine.
        std: for "random"; ``None`` uses the standard deviation of the table's positions.

    Returns:
        ``(new_rows, d)``, contiguous, in the dtype of ``weight``.

    Raises:
        PositionError: unknown strategy, a table that would shrink, or one without rows beyond its offset.
    """
    extend = {**STRATEGIES, SINUSOIDAL: _sinusoidal}.get(strategy)
    if extend is None and strategy not in DROPPED:
        known = [*STRATEGIES, *DROPPED]
        raise PositionError(f"Unknown position strategy '{strategy}'; expected one of {', '.join(known)}.{nearest(strategy, known)}")
    if weight.ndim != 2:
        raise PositionError(f"A position table has shape (positions, width), got {tuple(weight.shape)}.")
    old_rows = weight.shape[0]
    if not 0 <= offset < old_rows:
        raise PositionError(f"A position table of {old_rows} rows cannot start with {offset} special rows.")
    if new_rows < old_rows:
        raise PositionError(
            f"A position table of {old_rows} rows can only be extended, but {new_rows} rows were asked for;"
            f" give a maximum length of at least {old_rows - offset}."
        )
    weight = weight.detach()
    if extend is None:
        return weight.new_zeros(new_rows, weight.shape[1])
    if new_rows == old_rows:
        return weight.clone()
    extended = extend(weight[offset:], new_rows - offset, seed, std)
    return torch.cat([weight[:offset], extended]).contiguous()


def shorten_table(weight: Tensor, new_rows: int, *, offset: int, strategy: str = "truncate") -> Tensor:
    """A position table with ``new_rows`` rows: the first ones of ``weight``, or those from which interpolation best restores it.

    Args:
        weight: ``(P, d)``, any floating dtype, on the CPU or on ``meta``; not changed.
        new_rows: rows of the result, including the ``offset`` special rows.
        offset: number of leading rows that are not positions; they are copied.
        strategy: "truncate", or "interpolate": both ends fixed, the others such that linear interpolation is closest to ``weight`` (least
            squares). For a table that :func:`extend_table` interpolated, these are the original rows up to rounding.

    Raises:
        PositionError: unknown strategy, or a table that would grow.
    """
    if strategy not in SHORTER:
        raise PositionError(f"Unknown way {strategy!r} to shorten positions; expected {' or '.join(SHORTER)}.{nearest(strategy, SHORTER)}")
    if not offset < new_rows <= weight.shape[0]:
        raise PositionError(f"A position table of {weight.shape[0]} rows cannot be shortened to {new_rows}.")
    weight = weight.detach()
    if strategy == "truncate" or new_rows == weight.shape[0]:
        return weight[:new_rows].contiguous()
    return torch.cat([weight[:offset], _before_interpolation(weight[offset:], new_rows - offset)]).contiguous()
