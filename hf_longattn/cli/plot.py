"""Draws attention patterns: one row of panels per mechanism, one panel per head if heads differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engines.common.call import AttentionCall
from ..engines.common.grid import Grid
from ..errors import LongAttentionError, check_extra, needs_extra
from ..files import check_new_file, staged_file
from ..mechanisms import Mechanism
from ..mechanisms.common.choice_text import write_numbers

DRAWN_GRID = Grid((14, 18), prefix=1)
"""The patches of an image and its class token, on which a mechanism on a grid is drawn."""
TITLE = 46
"""Characters of a title that fit over a panel."""


SVG = {"svg.hashsalt": "longattn", "svg.fonttype": "none"}
"""matplotlib's settings for SVG files that are equal for equal drawings, with text as text."""


def check_image(file: Path) -> None:
    """Refuse a file that cannot be drawn into, before what is drawn is computed.

    Raises:
        LongAttentionError: matplotlib is not installed, or does not support the file's extension, the file exists, or its folder does not.
    """
    check_extra("plot")
    from matplotlib.figure import Figure

    known = sorted(Figure().canvas.get_supported_filetypes())
    if file.suffix.lstrip(".").lower() not in known:
        raise LongAttentionError(f"Cannot draw into {str(file)!r}: give a name that ends in one of {', '.join(known)}.")
    check_new_file(file)


def name_layers(mechanisms: Sequence[Mechanism]) -> dict[str, Mechanism]:
    """Mechanisms by name, with equal layers grouped: "layers 0,2: window window=64"."""
    groups: dict[str, list[int]] = {}
    for index, mechanism in enumerate(mechanisms):
        text = " ".join([mechanism.name, *(f"{name}={value}" for name, value in mechanism.options.to_dict().items())])
        groups.setdefault(text, []).append(index)
    return {f"layer{'s' * (len(of) > 1)} {write_numbers(of)}: {text}": mechanisms[of[0]] for text, of in groups.items()}


def pattern(mechanism: Mechanism, length: int, causal: bool) -> Tensor:
    """(H, N, N) weights for random queries and keys, seeded."""
    generator = torch.Generator().manual_seed(0)
    q, k = 0.5 * torch.randn(2, 1, mechanism.num_heads, length, mechanism.head_dim, generator=generator)
    with torch.no_grad():
        return mechanism.weights(q, k, causal=causal)[0]


class Panel(NamedTuple):
    """A panel with weights ``(rows, columns)``; the query at ``(column, row)`` is marked, if there is one."""

    title: str
    weights: Tensor
    query: tuple[int, int] | None = None


def views(mechanism: Mechanism, grid: Grid) -> list[Panel]:
    """What cells in the middle, at a border and in a corner of a grid of two axes see."""
    generator = torch.Generator().manual_seed(0)
    q, k = 0.5 * torch.randn(2, 1, mechanism.num_heads, grid.length, mechanism.head_dim, generator=generator)
    with torch.no_grad():
        weights = mechanism.weights(q, k, AttentionCall(causal=False, grid=grid))[0]
    rows, columns = grid.sizes
    panels = []
    for row, column in ((rows // 2, columns // 2), (rows // 2, 0), (rows - 1, columns - 1)):
        query = grid.prefix + row * columns + column
        panels.append(Panel(f"row {row}, column {column}", weights[0, query, grid.prefix :].view(rows, columns), (column, row)))
    return panels


def draw_patterns(mechanisms: Mapping[str, Mechanism], *, length: int, causal: bool | Sequence[bool], file: Path) -> None:
    """Write an image: a row per query, a column per key, darker for larger weights, white where nothing is visible. Of a mechanism on a
    grid, a panel for each of three cells of :data:`DRAWN_GRID` shows the cells that it sees.

    ``causal`` selects the form, for all mechanisms or for each.

    Raises:
        LongAttentionError: matplotlib is not installed, or does not support the file's extension.
        CheckpointError: the file cannot be written.
    """
    with needs_extra("plot"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    forms = [causal] * len(mechanisms) if isinstance(causal, bool) else causal
    rows: dict[str, list[Panel]] = {}
    for (name, mechanism), form in zip(mechanisms.items(), forms, strict=True):
        if mechanism.traits.needs_grid or mechanism.options.order is not None:
            rows[name] = [panel._replace(title=f"{name}: {panel.title}") for panel in views(mechanism, DRAWN_GRID)]
            continue
        heads = pattern(mechanism, length, form)
        visible = heads > 0
        if bool((visible == visible[:1]).all()):
            heads = heads[:1]
        rows[name] = [Panel(name if len(heads) == 1 else f"{name}, head {head}", weights) for head, weights in enumerate(heads)]
    columns = max(len(panels) for panels in rows.values())
    in_one_row = columns == 1  # single panels stand side by side
    shape = (1, len(rows)) if in_one_row else (len(rows), columns)
    figure = Figure(figsize=(max(3.4 * shape[1], 4.2), 3.6 * shape[0]), layout="constrained")
    grid = figure.subplots(*shape, squeeze=False)
    for axes, panels in zip(grid.T if in_one_row else grid, rows.values(), strict=True):
        for number, axis in enumerate(axes):
            if number >= len(panels):
                axis.set_axis_off()
                continue
            title, weights, query = panels[number]
            shown = (weights / weights.amax(-1, keepdim=True)).masked_fill(weights == 0, float("nan")) ** 0.5
            axis.imshow(shown.numpy(), cmap="viridis_r", interpolation="nearest")
            if query is not None:
                axis.plot(*query, marker="s", markersize=7, fillstyle="none", color="crimson")
            axis.set(xlabel="key" if query is None else "column", ylabel="query" if query is None else "row")
            axis.set_title(fill(title, TITLE), fontsize=8)
    undated: dict[str, Any] = {"metadata": {"Date": None}} if file.suffix.lower() == ".svg" else {}
    try:
        with staged_file(file) as stage, rc_context(SVG):
            figure.savefig(stage, dpi=120, **undated)
    except LongAttentionError:
        raise
    except ValueError as error:
        raise LongAttentionError(f"Cannot draw into {str(file)!r}: {error}.") from error
