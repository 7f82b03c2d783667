"""The curve of recall against the size of the state, and against the speed of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.dev.benchmarks.drawing import svg

PANELS = (("state_bytes", 1024, "state of a sequence, KiB"), ("tokens_per_second", 1, "tokens per second while decoding"))
COLOURS, MARKERS = 10, "osD^v<>"
"""Families differ by colour, and from the eleventh on by marker, too."""


def plot_recall(results: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw results as :func:`probes.measure_recall` gives them (as mappings) into ``path`` (SVG); settings of
    one mechanism are joined.

    Raises:
        LongAttentionError: when matplotlib is not installed.
    """
    families = list(dict.fromkeys(row["name"].split(" ")[0] for row in results))
    with svg(path, len(PANELS), sharey=True, height=max(3.8, 0.24 * len(families))) as (_, axes):
        for panel, (key, unit, label) in zip(axes, PANELS, strict=True):
            for number, family in enumerate(families):
                points = sorted((row[key] / unit, 100 * row["accuracy"]) for row in results if row["name"].split(" ")[0] == family)
                look = {"color": f"C{number % COLOURS}", "marker": MARKERS[number // COLOURS % len(MARKERS)]}
                panel.plot(*zip(*points, strict=True), **look, alpha=0.8, label=family)
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter("{x:,g}")
            panel.set(xlabel=label)
            panel.grid(alpha=0.3)
        axes[0].set(ylabel="recall, %", ylim=(-3, 103))
        axes[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1.02))
    return path
