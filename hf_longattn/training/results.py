"""Results of a run: rows for the model card and its metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_longattn.errors import in_one_line
from hf_longattn.evaluation.summaries import LEAST_ITEMS, plus_minus
from hf_longattn.files import public_name
from hf_longattn.hub import MeasuredResult

HELD_OUT, TRAINED = "held out", "on the training data"
PERCENT = {
    "exact_match": "exact match", "f1": "F1", "accuracy": "accuracy",
    "macro_f1": "macro F1", "precision": "precision", "recall": "recall", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum", "accuracy_at_1": "right document first", "mrr": "MRR@10", "ndcg": "nDCG@10",
    "spearman": "Spearman correlation", "pearson": "Pearson correlation", "wer": "word error rate",
    "cer": "character error rate",
}  # fmt: skip
"""Scores in per cent, by their names in a log."""


Scores = Mapping[str, Any]
"""The scores of one evaluation: numbers by name, their standard errors as ``NAME_se``, and ``n``, the number of rows."""


def plain_scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of a Trainer evaluation, without its prefix and its times."""
    named = {name.partition("_")[2]: value for name, value in metrics.items() if isinstance(value, (int, float))}
    scores = {name: value for name, value in named.items() if name.removesuffix("_se") in ("loss", "n", *PERCENT)}
    return {**scores, "n": int(scores["n"])} if "n" in scores else scores


def compared_losses(before: Scores | None, after: Scores) -> dict[str, Any]:
    """The held-out losses for a log: before (``None`` if not measured) and after, with the standard error of the latter and n."""
    losses: dict[str, Any] = {"before": None if before is None else before["loss"], "after": after["loss"]}
    return {**losses, "standard_error": error_of(after, "loss"), "n": after.get("n")}


def error_of(scores: Scores, name: str) -> float | None:
    """The standard error of a score; ``None`` where it has none."""
    error = scores.get(f"{name}_se")
    return float(error) if error is not None and math.isfinite(error) else None


def score_in_words(scores: Scores, name: str, label: str = "") -> str:
    """ "accuracy 91.2 ± 1.3 %"; ``label``: in place of the metric's name."""
    return f"{label or PERCENT[name]} {plus_minus(scores[name], error_of(scores, name), 1)} %"


def loss_in_words(loss: Mapping[str, Any]) -> str:
    """ "3.214 before, 2.935 ± 0.041 after (32 inputs)", of :func:`compared_losses`; "2.935 ± 0.041 (32 inputs)" without a loss before."""
    count = loss.get("n")
    before, after = ("", "") if loss["before"] is None else (f"{loss['before']:.3f} before, ", " after")
    rows = "" if count is None else f" ({counted(count, 'input')})"
    return f"{before}{plus_minus(loss['after'], loss.get('standard_error'), 3)}{after}{rows}"


def scored_part(log: Mapping[str, Any], task: str = "") -> str:
    """The part of the data that a log's scores are of: "held out", which may be "but for 3 training rows", :data:`TRAINED`, or, in an
    evaluation, "scored"."""
    rows = log.get("scored_rows") or {}
    rows = rows.get(task) or {} if task else rows
    if not rows:
        return "scored"
    if rows["trained"] == rows["n"]:
        return TRAINED
    return f"{HELD_OUT} but for {counted(rows['trained'], 'training row')}" if rows["trained"] else HELD_OUT


def loss_name(log: Mapping[str, Any], name: str = "loss") -> str:
    """ "held-out loss", "loss on the training data", or "loss" where only an evaluation knows the data."""
    part = scored_part(log)
    return name if part == "scored" else f"{name} {part}" if part == TRAINED else f"held-out {name}{part.removeprefix(HELD_OUT)}"


def held_out_in_words(log: Mapping[str, Any], words: Callable[[Scores], str], rows: str, task: str = "") -> str:
    """ "held out: accuracy 50.0 ± 5.0 % before; accuracy 91.2 ± 2.8 % after (100 documents)"; without these words, where one was measured.

    Args:
        log: with the scores before and after in ``held_out``; ``None`` or empty = not measured here.
        words: describes one evaluation.
        rows: the counted unit, in the singular.
        task: of several tasks, whose scores are by task.
    """
    evaluations = {when: (scores or {}).get(task) if task else scores for when, scores in log["held_out"].items()}
    measured = {when: scores for when, scores in evaluations.items() if scores}
    count = next((scores["n"] for scores in reversed(measured.values()) if "n" in scores), None)
    parts = "; ".join(words(scores) + (f" {when}" if len(measured) > 1 else "") for when, scores in measured.items())
    return f"{scored_part(log, task)}: {parts}{rows_in_words(count, rows)}" if measured else "nothing was scored here"


def rows_in_words(count: int | None, rows: str) -> str:
    """ " (100 documents)"; of few also what they can tell: a mean of scores from 0 to 100 % has a 95 % interval of ± 100 / √n at most."""
    if count is None:
        return ""
    few = f", too few to tell scores less than {100 / count**0.5:.0f} points apart" if 0 < count < LEAST_ITEMS else ""
    return f" ({counted(count, rows)}{few})"


def counted(count: int, what: str) -> str:
    """ "1 document", "1,200 documents", "2 queries", "2 matches"."""
    plural = re.sub(r"(?<=[^aeiou])y$", "ie", re.sub(r"(s|x|z|ch|sh)$", r"\1e", what)) + "s"
    return f"{count:,} {what if count == 1 else plural}"


def steps_of(log: Mapping[str, Any]) -> str:
    """The optimiser steps of a run, in words."""
    return f"{max((entry.get('step', 0) for entry in log['history']), default=0):,} steps"


def end_of_training(log: Mapping[str, Any]) -> Mapping[str, Any]:
    """Trainer's last log entry of a run. Its minutes count all sessions. Empty in an evaluation."""
    return next((entry for entry in reversed(log["history"]) if "train_runtime" in entry), {})


def sources_in_words(settings: Mapping[str, Any]) -> str:
    """The training data for a card: names on the Hub, and files and folders without their parents."""
    return _in_words(settings.get("data") or settings.get("text") or settings.get("tasks") or [settings.get("task_file", "")])


def _in_words(sources: Sequence[str]) -> str:
    return ", ".join(in_one_line(public_name(source)) for source in sources)


def measured(log: Mapping[str, Any], task: str | None = None) -> list[MeasuredResult]:
    """The final scores as rows of the card's table. ``task`` as for :class:`~hf_longattn.hub.MeasuredResult`."""
    settings, rows = log["settings"], []
    after = (log.get("held_out") or {}).get("after") or {}
    systems = [("", _dataset(log, sources_in_words(settings), settings.get("validation")), after)] if "tasks" not in log else []
    validation, sources = (
        dict(text.partition("=")[::2] for text in settings.get(option) or () if "=" in text) if "tasks" in log else {}
        for option in ("validation", "tasks")
    )
    for name in log.get("tasks", ()):  # of a task in a file, the data are that file
        source = _in_words([sources[name].partition(":")[2]]) if name in sources else sources_in_words(settings)
        systems.append((f"head {name}", _dataset(log, source, validation.get(name), name), after.get(name)))
    for system, data, scores in systems:
        for key, metric in PERCENT.items():
            if not scores:
                continue
            value = scores.get(key)
            if isinstance(value, (int, float)) and math.isfinite(value):
                more: dict[str, Any] = {"n": scores.get("n"), "standard_error": error_of(scores, key)}
                rows.append(MeasuredResult(data, metric, value, "%", task=task, metric_type=key, system=system, **more))
    losses = log.get("held_out_loss") or {}
    loss = losses.get("after")
    if loss is not None and not rows and math.isfinite(loss):
        more = {"n": losses.get("n"), "standard_error": losses.get("standard_error")}
        rows.append(MeasuredResult(systems[0][1], loss_name(log), loss, "nats", task=task, metric_type="loss", **more))
    return rows


def _dataset(log: Mapping[str, Any], sources: str, validation: str | None, task: str = "") -> str:
    """The data of scores for a card: their names, and whether they were held out or trained on."""
    part = scored_part(log, task)
    part = {TRAINED: "training data", "scored": HELD_OUT}.get(part, part)
    name = _in_words([validation]) if validation else sources
    return name if validation and part == HELD_OUT else f"{name} ({part})"
