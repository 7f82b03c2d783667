"""Extend a learned position table to more positions. New rows are computed, not trained.

``tile``         row i of the new table is row i mod P of the old one. Neighbouring positions keep exactly the
                 difference from training, except at the seams. Attention within a window sees hardly anything but
                 neighbours (Longformer, section 5: https://arxiv.org/abs/2004.05150).
``interpolate``  the old positions are stretched over the new length by linear interpolation, with both ends fixed
                 (Chen et al. 2023, https://arxiv.org/abs/2306.15595). Every distance shrinks by the factor, so this
                 needs training.
``stretch:20``   the first 20 rows are unchanged, because most of CLIP's training captions are short. The rows after
                 them are stretched over the rest, linear in between; new rows after the last old one continue its last
                 step. 77 rows become 248 as in Long-CLIP (Zhang et al. 2024, https://arxiv.org/abs/2403.15378). Texts
                 longer than 21 tokens change, so this needs training. ``stretch`` alone keeps 20 rows.
``none``         every row is the mean of the old rows: no absolute positions, for use with relative positions. Needs
                 training.
``alibi``        as ``none``, with ALiBi (:mod:`hf_longattn.positions.relative`) in every layer. Needs training.

``sinusoidal``   for tables that are computed, not learned (Vaswani et al. 2017, section 3.5; Pegasus): the formula
                 gives the new rows.

Rows below ``offset`` are not positions (RoBERTa's table starts with two such rows). They are copied unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from hf_longattn.errors import OptionError, nearest

ALIBI = "alibi"
"""The strategy that discards the table, and the value of the option ``relative`` that takes its place."""
DROPPED = ("none", ALIBI)
"""Strategies that discard the table: all rows are their mean."""
SINUSOIDAL = "sinusoidal"
"""Strategy for computed tables. Users do not type it."""
INTERPOLATE, STRETCH = "interpolate", "stretch"
UNCHANGED_ROWS = 20
"""Number of rows that ``stretch`` leaves unchanged by default, as in Long-CLIP: the effective length of CLIP's
captions."""
SINUSOIDAL_ERROR = 1e-2
"""Maximum difference from computed sinusoids: above bf16 rounding (4e-3), below the difference between neighbouring
positions."""


def _interpolate(old: Tensor, rows: int) -> Tensor:
    """The strategy ``interpolate``: ``old (P, d)`` as ``(rows, d)``."""
    if old.shape[0] == 1:
        return old.expand(rows, -1)
    channels_first = old.to(torch.float64).T.unsqueeze(0)  # rounds each row once
    stretched = functional.interpolate(channels_first, size=rows, mode="linear", align_corners=True)
    return stretched[0].T.to(old.dtype)


def check_stretch(rows: int, unchanged: int) -> None:
    """Check that a table of ``rows`` positions has at least two after the first ``unchanged``, which are kept.

    Raises:
        OptionError: there are fewer. The message has the number of positions that can be kept.
    """
    if rows < unchanged + 2:
        advice = f"keep fewer with stretch:{rows - 2}" if rows > 2 else f"choose {INTERPOLATE} instead"
        raise OptionError(
            f"A table of {rows} positions has fewer than two after the first {unchanged}, which stretch:{unchanged} "
            f"keeps; {advice}."
        )


def _stretch(old: Tensor, rows: int, *, unchanged: int) -> Tensor:
    """The strategy ``stretch``: ``old (P, d)`` as ``(rows, d)``, with the first ``unchanged`` rows kept."""
    check_stretch(len(old), unchanged)
    # Each later row is between two old rows, `below` and the next, at a fraction of the way from one to the other.
    place = torch.arange(rows - unchanged, dtype=torch.float64) * (len(old) - unchanged) / (rows - unchanged)
    below = place.floor().long().clamp(max=len(old) - unchanged - 2)
    fraction = place - below  # above 1 beyond the last old row
    tail = old[unchanged:].to(torch.float64)
    stretched = torch.lerp(tail[below], tail[below + 1], fraction[:, None])
    return torch.cat([old[:unchanged], stretched.to(old.dtype)])


def _sinusoidal(old: Tensor, rows: int) -> Tensor:
    """The strategy ``sinusoidal``: ``old (P, d)`` continued to ``(rows, d)`` by the formula."""
    computed = sinusoids(rows, old.shape[1])
    error = float((computed[: old.shape[0]] - old.to(torch.float32)).abs().max())
    if error > SINUSOIDAL_ERROR:
        raise OptionError(
            f"The source's position table differs by up to {error:.1e} from the sinusoids that its architecture "
            "computes, so it cannot be extended; was it trained with modified code?"
        )
    return torch.cat([old, computed[old.shape[0] :].to(old.dtype)])


STRATEGIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "tile": lambda old, rows: old[torch.arange(rows) % old.shape[0]],
    INTERPOLATE: _interpolate,
}
KNOWN = (*STRATEGIES, STRETCH, *DROPPED)
"""Strategies for learned tables, as users type them."""


def sinusoids(rows: int, width: int) -> Tensor:
    """``(rows, width)`` fp32: row p is sin(p / 10000^(2i/width)) for i < width/2, then the cosines (Vaswani et al.
    2017, section 3.5)."""
    return sinusoids_at(torch.arange(rows), width).to(torch.float32)


def sinusoids_at(positions: Tensor, width: int) -> Tensor:
    """``(N, width)`` float64: rows of :func:`sinusoids` for whole numbers ``positions (N,)``, which may be
    negative."""
    frequency = 10000.0 ** (-2 * torch.arange((width + 1) // 2, dtype=torch.float64, device=positions.device) / width)
    angle = positions.to(torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle[:, : width // 2].cos()], dim=1)


def stretched_from(strategy: str) -> int | None:
    """The number of rows that ``stretch`` or ``stretch:ROWS`` leaves unchanged; ``None`` for any other strategy.

    Raises:
        OptionError: the text after the colon is not a number of rows.
    """
    name, colon, count = strategy.partition(":")
    if name != STRETCH:
        return None
    if colon and not (count.isdecimal() and int(count) > 0):
        raise OptionError(
            f"{strategy!r} does not say how many rows are kept; give a number of at least 1, as "
            f"stretch:{UNCHANGED_ROWS}."
        )
    return int(count) if colon else UNCHANGED_ROWS


def extends_learned(strategy: str) -> bool:
    """Whether ``strategy`` extends learned tables; ``stretch:ROWS`` does for any number of rows."""
    return strategy in STRATEGIES or stretched_from(strategy) is not None


def keeps_old_rows(strategy: str) -> bool:
    """Whether ``strategy`` leaves the old rows in place, so that outputs up to the old length are unchanged."""
    return strategy != INTERPOLATE and stretched_from(strategy) is None and strategy not in DROPPED


def unchanged_rows(strategy: str, rows: int) -> int:
    """The number of positions at the start, out of ``rows``, that an extension leaves unchanged.

    Texts of at most this many tokens have the same outputs.
    """
    if strategy in DROPPED:
        return 0
    unchanged = stretched_from(strategy)
    if unchanged is not None:
        return min(rows, unchanged + 1)
    return rows if keeps_old_rows(strategy) else 1  # interpolation keeps the first position


def extend_table(weight: Tensor, new_rows: int, *, offset: int, strategy: str = "tile") -> Tensor:
    """A position table with ``new_rows`` rows, made from the trained table ``weight``.

    Args:
        weight: ``(P, d)``, any floating dtype, on the CPU; not changed.
        new_rows: rows of the result, including the ``offset`` special rows (4,098 for a RoBERTa of 4,096 tokens).
        offset: number of rows at the start that are not positions; they are copied once.
        strategy: one of those in the module's docstring, such as ``"tile"``, ``"stretch"`` or ``"stretch:20"``.

    Returns:
        ``(new_rows, d)``, contiguous, in the dtype of ``weight``.

    Raises:
        OptionError: the strategy is unknown or does not suit the table, the table would shrink, or it has only
            ``offset`` rows.
    """
    unchanged = stretched_from(strategy)
    extend = {**STRATEGIES, SINUSOIDAL: _sinusoidal}.get(strategy)
    if unchanged is not None:
        extend = partial(_stretch, unchanged=unchanged)
    if extend is None and strategy not in DROPPED:
        raise OptionError(
            f"Unknown position strategy '{strategy}'; expected one of {', '.join(KNOWN)}.{nearest(strategy, KNOWN)}"
        )
    if weight.ndim != 2:
        raise OptionError(f"A position table has shape (positions, width), got {tuple(weight.shape)}.")
    old_rows = weight.shape[0]
    if not 0 <= offset < old_rows:
        raise OptionError(f"A position table of {old_rows} rows cannot start with {offset} special rows.")
    if new_rows < old_rows:
        raise OptionError(
            f"A position table of {old_rows} rows can only be extended, but {new_rows} rows were requested; give a "
            f"maximum length of at least {old_rows - offset}."
        )
    weight = weight.detach()
    if extend is None:
        mean = weight[offset:].mean(0, keepdim=True, dtype=torch.float64).to(weight.dtype)
        return torch.cat([weight[:offset], mean.expand(new_rows - offset, -1)]).contiguous()
    if new_rows == old_rows:
        return weight.clone()
    extended = extend(weight[offset:], new_rows - offset)
    return torch.cat([weight[:offset], extended]).contiguous()
