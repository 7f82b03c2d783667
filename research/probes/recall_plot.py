"""The curve of recall against the size of the state, and against the speed of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.drawing import svg

PANELS = (("state_bytes", "bytes of state of a sequence"), ("tokens_per_second", "tokens per second while decoding"))


def plot_recall(results: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw results as :func:`research.probes.measure_recall` gives them (as mappings) into ``path`` (SVG); settings of
    one mechanism are joined.

    Raises:
        LongAttentionError: when matplotlib is not installed.
    """
    with svg(path, len(PANELS), sharey=True) as (_, axes):
        for panel, (key, label) in zip(axes, PANELS, strict=True):
            for family in dict.fromkeys(row["name"].split(" ")[0] for row in results):
                points = sorted((row[key], 100 * row["accuracy"]) for row in results if row["name"].split(" ")[0] == family)
                panel.plot(*zip(*points, strict=True), marker="o", label=family)
            panel.set(xlabel=label, xscale="log")
            panel.grid(alpha=0.3)
        axes[0].set(ylabel="recall, %", ylim=(-3, 103))
        axes[1].legend(frameon=False, fontsize=8)
    return path
