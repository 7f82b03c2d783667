"""The image of README.md and the site's first page: seconds and memory of one text by its length, stock models against
ours.

It is small, so that its words are large where it fills a column, on a phone, too.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from scripts.dev.benchmarks.stock_windows import SHAPES

FILE = "first_look.svg"
RESULT = "stock_windows"
"""From ``python -m scripts.dev.benchmarks.stock_windows``."""
MODELS = {
    "answerdotai/ModernBERT-base": "ModernBERT-base, an encoder",
    "google/gemma-3-270m": "Gemma 3 270M, a decoder",
}
WAYS = {"transformers": "#8a8a8a", "longattn": "#1f6fb4"}


def points(record: dict[str, Any], model: str) -> list[tuple[int, list[float], list[float]]]:
    """Length, seconds and MiB of both ways, for each text that all layers of the model read in both."""
    rows = [
        row
        for row in record["rows"]
        if row["model"] == model and "difference" in row and row["layers"] == SHAPES[model].layers
    ]
    return [
        (
            row["length"],
            [statistics.median(wall for wall, _ in turns) for turns in zip(*row["turns"], strict=True)],
            row["mebibytes"],
        )
        for row in rows
    ]


def draw(record: dict[str, Any], path: Path) -> None:
    """Seconds and MiB of one pass over the tokens of a text, as SVG. Equal records give equal bytes."""
    about = record["machine"]
    with matplotlib.rc_context({"svg.hashsalt": "hf_longattn", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(5.6, 4.6))  # without pyplot, whose backend is the caller's
        panels = figure.subplots(2, len(MODELS), sharex=True, sharey="row")
        for column, (model, title) in enumerate(MODELS.items()):
            measured = points(record, model)
            lengths = [length for length, *_ in measured]
            for row, unit in enumerate(("seconds", "MiB of memory")):
                panel = panels[row, column]
                for way, (name, colour) in enumerate(WAYS.items()):
                    values = [both[way] for _, *kinds in measured for both in (kinds[row],)]
                    panel.plot(lengths, values, color=colour, marker="o", markersize=4, linewidth=2.6 if way else 1.8)
                    place: dict[str, Any] = {"xytext": (4, -27)} if way else {"xytext": (-14, -2)}
                    panel.annotate(
                        name,
                        (lengths[-1], values[-1]),
                        textcoords="offset points",
                        ha="right",
                        color=colour,
                        weight="bold",
                        **place,
                    )
                panel.set(xticks=lengths, xlim=(0, lengths[-1] * 1.08), ylim=(0, None))
                panel.xaxis.set_major_formatter(
                    FuncFormatter(lambda n, _: f"{n / 1024:g}K" if n >= 1024 else f"{n:g}")
                )
                panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
                panel.grid(alpha=0.25)
                panel.spines[["top", "right"]].set_visible(False)
                if not column:
                    panel.set_ylabel(unit)
            panels[0, column].set_title(title, fontsize=10, loc="left")
            panels[1, column].set_xlabel("tokens of a text")
        machine = f"fp32, {about['threads']} threads of a CPU: {about['processor']}, torch {about['torch']}"
        figure.text(0.99, 0.005, machine, ha="right", va="bottom", fontsize=7, color="#777777")
        figure.tight_layout(rect=(0, 0.02, 1, 1))
        figure.savefig(path, format="svg", metadata={"Date": None})
