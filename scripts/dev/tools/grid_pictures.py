"""What a patch of a picture sees with each mechanism, for docs/how-to/images.md: a panel per mechanism, from its own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.engines.common.grid import Grid
from hf_longattn.mechanisms.common.registry import mechanism_from

FILE = "seen_on_a_grid.svg"
GRID = Grid((12, 16))
"""The patches that are drawn."""
NOTHING, MEANS, SEEN = 0, 1, 2
COLOURS = {NOTHING: "#f4f4f4", MEANS: "#bcd3ee", SEEN: "#3572b0"}


class Panel(NamedTuple):
    """A mechanism, its options, the layer that is drawn, and the row and column of the patch that looks."""

    title: str
    mechanism: str
    options: dict[str, Any]
    query: tuple[int, int] = (5, 6)
    layer: int = 0


TILES = {"block_size": 16, "order": "tiles:4x4"}
PANELS = (
    Panel("window2d: window=4", "window2d", {"window": 4}),
    Panel("window2d: window=4, shift=alternate\n(layers 1, 3, 5 …)", "window2d", {"window": 4, "shift": "alternate"}, layer=1),
    Panel("local2d: radius=2", "local2d", {"radius": 2}),
    Panel("local2d: radius=2, at a border", "local2d", {"radius": 2}, (5, 0)),
    Panel("neighborhood: kernel_size=5, at a border", "neighborhood", {"kernel_size": 5}, (5, 0)),
    Panel("neighborhood: kernel_size=5, dilation=2", "neighborhood", {"kernel_size": 5, "dilation": 2}),
    Panel("axial", "axial", {}),
    Panel("segmented: order=tiles:4x4", "segmented", TILES),
    Panel("segmented: order=tiles:4x4,\nintegration=pooled", "segmented", {**TILES, "integration": "pooled"}),
    Panel("window: window=24, order=raster", "window", {"window": 24, "order": "raster"}),
    Panel("window: window=24, order=hilbert", "window", {"window": 24, "order": "hilbert"}),
    Panel("window: window=24, order=tiles:4x4", "window", {"window": 24, "order": "tiles:4x4"}),
)


def seen(panel: Panel, grid: Grid = GRID) -> Tensor:
    """What the patch sees, ``(rows, columns)``: :data:`SEEN` with a weight of its own, :data:`MEANS` in a mean, or :data:`NOTHING`.

    Queries and keys are zero, so that all weights of a patch are equal but those that several patches share.
    """
    mechanism = mechanism_from(panel.mechanism, panel.options, num_heads=1, head_dim=4)
    mechanism.layer = panel.layer
    q = torch.zeros(1, 1, grid.length, 4)
    with torch.no_grad():
        weights = mechanism.weights(q, q, AttentionCall(causal=False, grid=grid))[0, 0]
    row = weights[panel.query[0] * grid.sizes[1] + panel.query[1]].view(grid.sizes)
    return torch.where(row <= 1e-9, NOTHING, torch.where(row >= row.max() * (1 - 1e-5), SEEN, MEANS))


def draw(file: Path) -> None:
    """Write the panels as one SVG, the same bytes each time."""
    with matplotlib.rc_context({"svg.hashsalt": "hf_longattn", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 8.4), layout="constrained")
        for axis, panel in zip(figure.subplots(4, 3).flat, PANELS, strict=True):
            colours = ListedColormap([COLOURS[kind] for kind in sorted(COLOURS)])
            axis.imshow(seen(panel).numpy(), cmap=colours, vmin=NOTHING, vmax=SEEN, interpolation="none")
            row, column = panel.query
            axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="none", edgecolor="crimson", linewidth=2))
            rows, columns = GRID.sizes
            lines = [[(-0.5, y - 0.5), (columns - 0.5, y - 0.5)] for y in range(1, rows)]
            lines += [[(x - 0.5, -0.5), (x - 0.5, rows - 0.5)] for x in range(1, columns)]
            axis.add_collection(LineCollection(lines, colors="white", linewidths=0.7))
            axis.set_axis_off()
            axis.set_title(panel.title, fontsize=10)
        figure.savefig(file, metadata={"Date": None})
