"""Draw attention patterns: a row of panels for each mechanism, a panel for each head if heads differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import torch
from torch import Tensor

from hf_longattn.engines.call import AttentionCall
from hf_longattn.engines.token_grid import Grid
from hf_longattn.mechanisms import Mechanism
from hf_longattn.mechanisms.common.base import attention_weights

DRAWN_GRID = Grid((14, 18), prefix=1)
"""The grid for drawing mechanisms on a grid: an image's patches and a class token."""
TITLE = 46
"""Maximum characters of a panel's title."""


class Panel(NamedTuple):
    """A panel with weights ``(rows, columns)``; the query at ``(column, row)`` is marked, if there is one."""

    title: str
    weights: Tensor
    query: tuple[int, int] | None = None


def panels_of(name: str, mechanism: Mechanism, length: int, causal: bool) -> list[Panel]:
    """The panels of a mechanism, for seeded random queries and keys.

    For a mechanism on a grid, three panels show the cells seen from the middle, a border and a corner of
    :data:`DRAWN_GRID`.
    """
    on_grid = mechanism.capabilities.needs_grid
    call = AttentionCall(causal=causal)
    if on_grid:
        call = AttentionCall(causal=False, grid=DRAWN_GRID)
        length = DRAWN_GRID.length
    generator = torch.Generator().manual_seed(0)
    q, k = 0.5 * torch.randn(2, 1, mechanism.num_heads, length, mechanism.head_dim, generator=generator)
    with torch.no_grad():
        weights = attention_weights(mechanism, q, k, call)[0]
    if on_grid:
        rows, columns = DRAWN_GRID.sizes
        panels = []
        for row, column in ((rows // 2, columns // 2), (rows // 2, 0), (rows - 1, columns - 1)):
            seen = weights[0, DRAWN_GRID.prefix + row * columns + column, DRAWN_GRID.prefix :]
            panels.append(Panel(f"{name}: row {row}, column {column}", seen.view(rows, columns), (column, row)))
        return panels
    visible = weights > 0
    if bool((visible == visible[:1]).all()):
        return [Panel(name, weights[0])]
    return [Panel(f"{name}, head {head}", of_head) for head, of_head in enumerate(weights)]


def draw_patterns(patterns: Mapping[str, tuple[Mechanism, bool]], *, length: int = 64, file: Path) -> None:
    """Write an image: a row per query, a column per key, darker for larger weights, white where nothing is visible.

    patterns: title -> a mechanism, and whether its form is the causal one.
    """
    from matplotlib.figure import Figure

    drawn = [panels_of(name, mechanism, length, causal) for name, (mechanism, causal) in patterns.items()]
    if all(len(panels) == 1 for panels in drawn):  # single panels stand side by side
        drawn = [[panel for panels in drawn for panel in panels]]
    width = max(map(len, drawn))
    figure = Figure(figsize=(max(3.4 * width, 4.2), 3.6 * len(drawn)), layout="constrained")
    for axes, panels in zip(figure.subplots(len(drawn), width, squeeze=False), drawn, strict=True):
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        for axis, (title, weights, query) in zip(axes, panels, strict=False):
            shown = (weights / weights.amax(-1, keepdim=True)).masked_fill(weights == 0, float("nan")) ** 0.5
            axis.imshow(shown.numpy(), cmap="viridis_r", interpolation="nearest")
            if query is None:
                axis.set(xlabel="key", ylabel="query")
            else:
                axis.plot(*query, marker="s", markersize=7, fillstyle="none", color="crimson")
                axis.set(xlabel="column", ylabel="row")
            axis.set_title(fill(title, TITLE), fontsize=8)
    figure.savefig(file, dpi=120)
