"""Every trained task with every mechanism, in small: one table and one picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_longattn.evaluation.probes import Compositional, Copy, Forgetting, Induction, ListOps
from scripts.dev.benchmarks.drawing import svg
from scripts.dev.benchmarks.report import markdown_table

from .recall import TrainedTask

TASKS: dict[str, TrainedTask] = {
    "copy": Copy(25, 16),
    "induction": Induction(24, 16),
    "forgetting": Forgetting(4, 2, 32, 16),
    "compositional": Compositional(2, 32, 24),
    "listops": ListOps(32, None, 3, 4),
}
"""The tasks, so small that full attention learns what it can within a minute."""
GUESSES = {"copy": 1 / 15, "induction": 1 / 16, "forgetting": 1 / 4, "compositional": 1 / 4, "listops": 1 / 10}
"""What a guess among the possible answers scores; of recall, among the latest values that the text holds."""
MECHANISMS = (
    "full",
    "window:window=8",
    "delta",
    "taylor:feature_dim=8,window:window=8",
    "linear",
    "block_top_k:block_size=4,num_blocks=3",
    "strided:window=4,stride=4",
    "hybrid:window=8",
)
LAYER = re.compile(r"(?:^|,)(\w+)(?=[:,]|$)")
"""The mechanism of each layer in a row's name."""


def accuracies(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows by mechanism and task, both in the order of :data:`MECHANISMS` and :data:`TASKS`."""
    names = sorted({row["name"] for row in results}, key=[*MECHANISMS, *(row["name"] for row in results)].index)
    return {name: {row["task"]: row for row in results if row["name"] == name} for name in names}


def learned_markdown(results: Sequence[dict[str, Any]]) -> str:
    """A line for each mechanism: percent of the asked tokens, and the steps of training; "·" where it was not trained."""

    def cell(row: dict[str, Any] | None) -> str:
        return "·" if row is None else f"{100 * row['accuracy']:.1f} ({row['steps']})"

    lines = [[f"`{name}`", *(cell(rows.get(task)) for task in TASKS)] for name, rows in accuracies(results).items()]
    guesses = ["guessing", *(f"{100 * GUESSES[task]:.0f}" for task in TASKS)]
    return markdown_table(["attention", *TASKS], [*lines, guesses])


def plot_learned(results: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw the table as bars, a panel for each task, with a line at what guessing scores.

    Raises:
        LongAttentionError: matplotlib is not installed.
    """
    found = accuracies(results)
    with svg(path, len(TASKS), width=2.4, sharey=True) as (_, axes):
        for axis, task in zip(axes, TASKS, strict=True):
            scores = [100 * rows[task]["accuracy"] if task in rows else 0 for rows in found.values()]
            axis.barh(range(len(found)), scores, color=[f"C{place % 10}" for place in range(len(found))])
            axis.axvline(100 * GUESSES[task], color="black", linestyle=":", linewidth=1)
            axis.set(xlim=(0, 103), xlabel="percent right", title=task)
        axes[0].set_yticks(range(len(found)), [" + ".join(LAYER.findall(name)) for name in found])
        axes[0].invert_yaxis()
    return path
