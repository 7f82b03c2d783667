"""Tables of long question answering: systems by document length, as data, markdown and a drawing, and how they are stored."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_longattn.evaluation.metrics.long_qa import summarise
from hf_longattn.evaluation.summaries import BUCKETS, plus_minus
from scripts.dev.benchmarks.report import markdown_table, store_study
from scripts.dev.studies.qa_run import ScoredAnswer, bucket_of

ALL = "all"


def tabulate(answers: Iterable[ScoredAnswer], buckets: Sequence[int] = BUCKETS) -> dict[str, Any]:
    """Aggregate answers by the length of the document.

    Returns:
        {group: {system: {bucket: cell}}} in order of appearance, buckets ascending and "all" last. A cell has exact_match,
        f1 and, for ten questions or more, their standard errors over questions (per cent), n, and seconds (median per document).
    """
    return _tabulate(
        answers, lambda answer: bucket_of(answer.length, buckets), [*(f"<={high}" for high in buckets), f">{buckets[-1]}", ALL]
    )


def by_position(answers: Iterable[ScoredAnswer], parts: int = 4) -> dict[str, Any]:
    """Aggregate answers, as :func:`tabulate`, by the part of the document in which the right answer starts."""
    names = [f"{100 * part // parts}–{100 * (part + 1) // parts} %" for part in range(parts)]
    placed = [answer for answer in answers if answer.position >= 0]
    return _tabulate(placed, lambda answer: names[min(parts - 1, int(parts * answer.position))], [*names, ALL])


def _tabulate(answers: Iterable[ScoredAnswer], column: Callable[[ScoredAnswer], str], order: Sequence[str]) -> dict[str, Any]:
    cells: dict[str, dict[str, dict[str, list[ScoredAnswer]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for answer in answers:
        row = cells[answer.group][answer.system]
        row[column(answer)].append(answer)
        row[ALL].append(answer)
    return {
        group: {system: {name: _cell(row[name]) for name in order if name in row} for system, row in rows.items()}
        for group, rows in cells.items()
    }


def to_markdown(table: dict[str, Any], metric: str = "exact_match", seconds: bool = True, by: str = "tokens of the document") -> str:
    """Return one markdown table per group: metric ± standard error per bucket, then the median ``seconds`` per document."""
    blocks = []
    for group, rows in table.items():
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        names = [name for name in names if name != ALL] + [ALL]
        first = next(iter(rows.values()))
        heads = [f"{_pretty(name)} (n={first[name]['n']})" for name in names]
        label = "EM" if metric == "exact_match" else "F1"
        shown = [
            [system, *(plus_minus(row[name][metric], row[name].get(f"{metric}_se"), 1) for name in names)] for system, row in rows.items()
        ]
        blocks += [f"**{group}**: {label}, per cent ± standard error, by {by}", markdown_table(["system", *heads], shown)]
        timed = [
            [system, *(f"{row[name]['seconds']:.3f}" for name in names)] for system, row in rows.items() if row[ALL]["seconds"] >= 1e-3
        ]
        if timed and seconds:
            blocks += [
                f"**{group}**: seconds per document (median, text to answer)",
                markdown_table(["system", *map(_pretty, names)], timed),
            ]
    return "\n\n".join(blocks) + "\n"


def summary_markdown(table: dict[str, Any], tokens: int = 1024, metric: str = "exact_match") -> str:
    """Return one table: each system's metric on documents of more than ``tokens`` tokens, a column per group, and the median seconds per
    document of the first group's longest ones."""
    systems = list(dict.fromkeys(system for rows in table.values() for system in rows))
    timed, first = next(iter(table.items()))
    longest = max((name for row in first.values() for name in row if name != ALL), key=_size)
    heads = [f"{group} (n={above(next(iter(rows.values())), tokens, metric)[2]})" for group, rows in table.items()]
    lines = []
    for system in systems:
        shown = ["–" if system not in rows else plus_minus(*above(rows[system], tokens, metric)[:2], 1) for rows in table.values()]
        seconds = first.get(system, {}).get(longest, {}).get("seconds", 0.0)
        lines.append([system, *shown, f"{seconds:.2f}" if seconds >= 1e-3 else "–"])
    return markdown_table([f"documents over {tokens:,} tokens", *heads, f"seconds, {timed}, {_pretty(longest)} tokens"], lines) + "\n"


def above(row: dict[str, Any], tokens: int, metric: str = "exact_match") -> tuple[float, float | None, int]:
    """Mean, standard error and number of questions over the buckets beyond ``tokens`` tokens; no error if a bucket has none."""
    cells = [cell for name, cell in row.items() if name != ALL and _size(name) > tokens]
    count = sum(cell["n"] for cell in cells)
    mean = sum(cell["n"] * cell[metric] for cell in cells) / count
    known = all(f"{metric}_se" in cell for cell in cells)
    return mean, sum((cell["n"] * cell[f"{metric}_se"]) ** 2 for cell in cells) ** 0.5 / count if known else None, count


def draw(table: dict[str, Any], path: str | Path, metric: str = "exact_match") -> None:
    """Draw the metric over document length, one panel per group, and the seconds per document; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * (len(table) + 1), 4.2))  # without pyplot, whose backend is the caller's
    axes = figure.subplots(1, len(table) + 1, squeeze=False)
    systems = list(dict.fromkeys(system for rows in table.values() for system in rows))
    style = {s: (f"C{i % 10}", "os^vD*PX<>"[i % 10]) for i, s in enumerate(systems)}
    names = [n for rows in table.values() for row in rows.values() for n in row if n != ALL]
    order = sorted(set(names), key=_size)
    places = {name: place for place, name in enumerate(order)}
    for axis, (group, rows) in zip(axes[0], table.items(), strict=False):
        for system, row in rows.items():
            shown = [name for name in row if name != ALL]
            values, errors = [row[n][metric] for n in shown], [row[n].get(f"{metric}_se", 0.0) for n in shown]
            color, marker = style[system]
            axis.errorbar([places[n] for n in shown], values, errors, label=system, color=color, marker=marker, capsize=2)
        axis.set(title=group, ylabel="exact match, %" if metric == "exact_match" else "F1, %", ylim=(-3, 103))
    last = axes[0][-1]
    longest = next(reversed(table.values()))
    for system, row in longest.items():
        shown = [name for name in row if name != ALL]
        if row[ALL]["seconds"] >= 1e-3:
            color, marker = style[system]
            last.plot([places[n] for n in shown], [row[n]["seconds"] for n in shown], color=color, marker=marker)
    last.set(title="seconds per document", yscale="log")
    for axis in axes[0]:
        axis.set_xticks(range(len(order)), [_pretty(name) for name in order])
        axis.set_xlabel("tokens of the document")
        axis.grid(alpha=0.3)
    handles = {label: h for a in axes[0] for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=3, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.06 + 0.035 * (len(handles) // 3), 1, 1))
    figure.savefig(path)


def _cell(answers: list[ScoredAnswer]) -> dict[str, Any]:
    scores = summarise([(answer.exact, answer.f1) for answer in answers])
    return {**scores, "seconds": statistics.median(answer.seconds for answer in answers)}


def _pretty(name: str) -> str:
    return name.replace("<=", "≤ ").replace(">", "> ")


def _size(name: str) -> float:
    return float(name.lstrip("<=>")) + (0.5 if name.startswith(">") else 0.0)


def write_report(stem: str | Path, answers: Sequence[ScoredAnswer], about: Mapping[str, Any], title: str) -> dict[str, Any]:
    """Write ``stem``.json, .md and (with matplotlib) .svg and .png.

    Args:
        stem: path without suffix; its folder is made.
        answers: of all systems.
        about: what was compared and on which machine; stored, and listed under the markdown tables.
        title: heading of the markdown.

    Returns:
        The table, as of :func:`tabulate`.
    """
    stem, table = Path(stem), tabulate(answers)
    columns = [field.name for field in dataclasses.fields(ScoredAnswer)]
    rows = {"columns": columns, "rows": [dataclasses.astuple(answer) for answer in answers]}
    notes = "\n".join(f"- {key}: {value}" for key, value in about.items())
    placed = by_position(answers)
    positions = to_markdown(placed, seconds=False, by="where the answer starts in the document") if placed else ""
    tables = "\n".join([to_markdown(table), to_markdown(table, "f1", seconds=False), positions])
    store_study(stem, {"about": dict(about), "table": table, "answers": rows}, f"# {title}\n\n{tables}\n{notes}\n")
    if find_spec("matplotlib"):
        draw(table, stem.with_suffix(".svg"))
        draw(table, stem.with_suffix(".png"))
    return table


def card_results(table: Mapping[str, Any], system: str) -> list[dict[str, Any]]:
    """Return the rows of one system for a model card, one per group and length bucket."""
    rows = []
    for group, systems in table.items():
        for bucket, cell in systems.get(system, {}).items():
            where = "all lengths" if bucket == "all" else f"documents of {bucket} tokens"
            rows.append(
                {
                    "dataset": f"{group}, {where}",
                    "metric": "exact match",
                    "value": round(cell["exact_match"], 2),
                    "unit": "%",
                    "n": cell["n"],
                    "standard_error": round(cell["exact_match_se"], 2) if "exact_match_se" in cell else None,
                    "split": "test",
                }
            )
    return rows
