"""What people look at after a run: rows for the model card and its metadata, and curves of loss and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_longattn.hub import MeasuredResult

CURVES = "training_curves.png"
PERCENT = {
    "exact_match": "exact match", "f1": "F1", "sp_f1": "F1 of supporting facts", "joint_f1": "joint F1", "accuracy": "accuracy",
    "macro_f1": "macro F1", "precision": "precision", "recall": "recall", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum", "accuracy_at_1": "right document first", "mrr": "MRR@10", "ndcg": "nDCG@10",
    "spearman": "Spearman correlation", "pearson": "Pearson correlation",
}  # fmt: skip
"""Scores in per cent, by their names in a log."""


def steps_of(log: Mapping[str, Any]) -> str:
    """The optimiser steps of a run, in words."""
    return f"{max((entry.get('step', 0) for entry in log['history']), default=0):,} steps"


def measured(log: Mapping[str, Any], task: str) -> list[MeasuredResult]:
    """The scores after a run as rows of the card's table; those of a baseline are rows with a system, and no metadata."""
    settings = log["settings"]
    sources = settings.get("data") or settings.get("text") or []
    name = settings.get("validation") or f"{', '.join(sources)} (held out)"
    dataset = Path(name).name if Path(name).exists() else name
    rows = []
    after = (log.get("held_out") or {}).get("after") or {}
    systems = [("", after), ("baseline: windows of a short model", log.get("baseline"))]
    systems += [(f"head {name}", scores) for name, scores in after.items() if name in log.get("tasks", {})]  # multitask
    for system, scores in systems:
        for key, metric in PERCENT.items():
            if not scores:
                continue
            value = scores.get(key)
            if isinstance(value, (int, float)) and math.isfinite(value):
                more: dict[str, Any] = {"n": scores.get("n"), "standard_error": scores.get(f"{key}_se")}
                rows.append(MeasuredResult(dataset, metric, value, "%", task=task, metric_type=key, system=system, **more))
    loss = log.get("held_out_loss", {}).get("after")
    if loss is not None and not rows and math.isfinite(loss):
        rows.append(MeasuredResult(dataset, "held-out loss", loss, "nats", task=task, metric_type="loss"))
    return rows


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Draw loss, learning rate and evaluation scores against steps; ``None`` without matplotlib or without two entries."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            known = name in ("loss", "learning_rate", "tokens_per_second") or name == "eval_loss" or name.removeprefix("eval_") in PERCENT
            if known and isinstance(value, (int, float)) and math.isfinite(value):
                curves.setdefault(name, []).append((entry.get("step", 0), value))
    shown: dict[str, list[str]] = {
        "loss": [name for name in ("loss", "eval_loss") if name in curves],
        "scores, %": [name for name in curves if name.removeprefix("eval_") in PERCENT],
        "learning rate": [name for name in ("learning_rate",) if name in curves],
        "tokens per second": [name for name in ("tokens_per_second",) if name in curves],
    }
    panels = {title: names for title, names in shown.items() if names}
    if max(map(len, curves.values()), default=0) < 2:
        return None
    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for name in names:
            axes.plot(*zip(*curves[name], strict=True), label=name, marker="." if len(curves[name]) < 20 else "")
        axes.set_title(title)
        axes.set_xlabel("step")
        if len(names) > 1:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path
