"""Tables of long question answering: systems by document length, as data, markdown and a drawing."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_longattn.evaluation.metrics.long_qa import BUCKETS, summarise
from research.qa_run import ScoredAnswer, bucket_of

ALL = "all"


def tabulate(answers: Iterable[ScoredAnswer], buckets: Sequence[int] = BUCKETS) -> dict[str, Any]:
    """Aggregate answers.

    Returns:
        {group: {system: {bucket: cell}}} in order of appearance, buckets ascending and "all" last. A cell has exact_match,
        f1 and their standard errors over questions (per cent; answers of several seeds to one question are averaged
        first), n, seconds (median per document), seeds, and with several seeds seed_spread (standard deviation of the
        seeds' exact match).
    """
    cells: dict[str, dict[str, dict[str, list[ScoredAnswer]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for answer in answers:
        row = cells[answer.group][answer.system]
        row[bucket_of(answer.length, buckets)].append(answer)
        row[ALL].append(answer)
    order = [*(f"<={high}" for high in buckets), f">{buckets[-1]}", ALL]
    return {
        group: {system: {name: _cell(row[name]) for name in order if name in row} for system, row in rows.items()}
        for group, rows in cells.items()
    }


def to_markdown(table: dict[str, Any], metric: str = "exact_match", seconds: bool = True) -> str:
    """Return one markdown table per group: metric ± standard error per bucket, then the median ``seconds`` per document."""
    blocks = []
    for group, rows in table.items():
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        names = [name for name in names if name != ALL] + [ALL]
        first = next(iter(rows.values()))
        heads = [f"{_pretty(name)} (n={first[name]['n']})" for name in names]
        label = "EM" if metric == "exact_match" else "F1"
        lines = [f"**{group}**: {label}, per cent ± standard error, by tokens of the document", ""]
        lines += ["| system | " + " | ".join(heads) + " |", "|---" * (len(names) + 1) + "|"]
        for system, row in rows.items():
            seeds = f" ({row[ALL]['seeds']} seeds)" if row[ALL]["seeds"] > 1 else ""
            shown = [f"{row[name][metric]:.1f} ± {row[name][metric + '_se']:.1f}" for name in names]
            lines.append(f"| {system}{seeds} | " + " | ".join(shown) + " |")
        timed = {system: row for system, row in rows.items() if row[ALL]["seconds"] >= 1e-3}
        if timed and seconds:
            lines += ["", f"**{group}**: seconds per document (median, text to answer)", ""]
            lines += ["| system | " + " | ".join(map(_pretty, names)) + " |", "|---" * (len(names) + 1) + "|"]
            for system, row in timed.items():
                lines.append(f"| {system} | " + " | ".join(f"{row[name]['seconds']:.3f}" for name in names) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def summary_markdown(table: dict[str, Any], tokens: int = 1024, metric: str = "exact_match") -> str:
    """Return one table: each system's metric on documents of more than ``tokens`` tokens, a column per group, and the median seconds per
    document of the longest ones."""
    systems = list(dict.fromkeys(system for rows in table.values() for system in rows))
    longest = max((name for rows in table.values() for row in rows.values() for name in row if name != ALL), key=_size)
    heads = [f"{group} (n={above(next(iter(rows.values())), tokens, metric)[2]})" for group, rows in table.items()]
    lines = [
        f"| documents over {tokens:,} tokens | " + " | ".join(heads) + f" | seconds, {_pretty(longest)} tokens |",
        "|---" * (len(table) + 2) + "|",
    ]
    for system in systems:
        shown = ["–" if system not in rows else "{:.1f} ± {:.1f}".format(*above(rows[system], tokens, metric)) for rows in table.values()]
        seconds = statistics.median(
            rows[system][longest]["seconds"] for rows in table.values() if system in rows and longest in rows[system]
        )
        seeds = max(rows[system][ALL]["seeds"] for rows in table.values() if system in rows)
        label = f"{system} ({seeds} seeds)" if seeds > 1 else system
        lines.append(f"| {label} | " + " | ".join(shown) + f" | {f'{seconds:.2f}' if seconds >= 1e-3 else '–'} |")
    return "\n".join(lines) + "\n"


def above(row: dict[str, Any], tokens: int, metric: str = "exact_match") -> tuple[float, float, int]:
    """Mean, standard error and number of questions over the buckets beyond ``tokens`` tokens."""
    cells = [cell for name, cell in row.items() if name != ALL and _size(name) > tokens]
    count = sum(cell["n"] for cell in cells)
    mean = sum(cell["n"] * cell[metric] for cell in cells) / count
    return mean, sum((cell["n"] * cell[f"{metric}_se"]) ** 2 for cell in cells) ** 0.5 / count, count


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
            values, errors = [row[n][metric] for n in shown], [row[n][metric + "_se"] for n in shown]
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
    by_question: dict[str, list[ScoredAnswer]] = defaultdict(list)
    by_seed: dict[int | None, list[float]] = defaultdict(list)
    for answer in answers:
        by_question[answer.id].append(answer)
        by_seed[answer.seed].append(answer.exact)
    mean = statistics.fmean
    cell: dict[str, Any] = summarise([(mean(a.exact for a in q), mean(a.f1 for a in q)) for q in by_question.values()])
    cell["seconds"] = statistics.median(answer.seconds for answer in answers)
    cell["seeds"] = len(by_seed)
    if len(by_seed) > 1:
        cell["seed_spread"] = 100 * statistics.stdev(mean(values) for values in by_seed.values())
    return cell


def _pretty(name: str) -> str:
    return name.replace("<=", "≤ ").replace(">", "> ")


def _size(name: str) -> float:
    return float(name.lstrip("<=>")) + (0.5 if name.startswith(">") else 0.0)
