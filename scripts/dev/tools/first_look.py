"""The image of README.md and the site's first page: seconds for one document by its length, for the models a user would compare.

It is small, so that its words are large where it fills a column, on a phone, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

FILE = "first_look.svg"
RESULT = "model-longformer-window512-layers4-fp32"
"""From ``python -m scripts.dev.benchmarks model --option window=512 --layers 4 --threads 1 --processor-time --lengths 512,…,65536``."""
MODELS = {"sdpa": ("BERT", "#8a8a8a"), "hf-longformer": ("transformers' Longformer", "#c98b2b"), "longattn": ("converted BERT", "#1f6fb4")}
OLD_LENGTH = 512


def draw(record: dict[str, Any], path: Path) -> None:
    """Seconds of one pass over the tokens of a document, as SVG; every line has its name beside it. Equal records give equal bytes."""
    case, about = record["case"], record["machine"]
    with matplotlib.rc_context({"svg.hashsalt": "hf_longattn", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(5.2, 4.2))  # without pyplot, whose backend is the caller's
        panel = figure.subplots()
        for name, (label, colour) in MODELS.items():
            line = [(t["length"], t["median_ms"] / 1e3) for t in record["timings"] if t["implementation"] == name]
            panel.plot(*zip(*line, strict=True), color=colour, marker="o", markersize=4, linewidth=2.6 if name == "longattn" else 1.8)
            below = {"xy": line[len(line) // 2], "xytext": (6, -6), "ha": "left", "va": "top"}
            above = {"xy": line[-1], "xytext": (-8, 4), "ha": "right"}
            place: dict[str, Any] = below if name == "longattn" else above  # the lowest line
            panel.annotate(label, textcoords="offset points", color=colour, weight="bold", **place)
        lengths = sorted({t["length"] for t in record["timings"]})
        panel.axvspan(lengths[0] / 4, OLD_LENGTH, color="#eeeeee", zorder=0, linewidth=0)
        panel.set(xscale="log", yscale="log", xticks=lengths, xlim=(lengths[0] / 4, lengths[-1] * 1.3))
        panel.set_ylim(top=panel.get_ylim()[1] * 1.4)  # for the name of the highest line
        panel.text(OLD_LENGTH / 1.04, panel.get_ylim()[1] / 2, "what BERT\nread before", ha="right", va="top", color="#777777", fontsize=8)
        panel.set(xlabel="tokens of the document", ylabel="seconds")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1024:g}K" if n >= 1024 else f"{n:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        window = case["options"]["window"]
        title = f"One document, one CPU thread: {case['layers']} layers\nof BERT-base's width, {case['dtype']}, windows of {window}"
        panel.set_title(title, fontsize=10, loc="left")
        machine = f"{about['processor']}, torch {about['torch']}"
        panel.text(1.0, -0.21, machine, transform=panel.transAxes, ha="right", fontsize=7, color="#777777")
        figure.tight_layout()
        figure.savefig(path, format="svg", metadata={"Date": None})
