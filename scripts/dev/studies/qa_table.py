"""Tables of long question answering: systems by document length, as data and markdown, and how they are stored."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_longattn.evaluation.metrics.long_qa import summarise
from hf_longattn.evaluation.summaries import BUCKETS, plus_minus
from scripts.dev.benchmarks.report import markdown_table, store_study
from scripts.dev.studies.qa_run import ScoredAnswer, bucket_of

ALL = "all"


def tabulate(answers: Iterable[ScoredAnswer]) -> dict[str, Any]:
    """Aggregate answers by the length of the document.

    Returns:
        {group: {system: {bucket: cell}}} in order of appearance, buckets ascending and "all" last. A cell has exact_match,
        f1 and, for ten questions or more, their standard errors over questions (per cent), n, and seconds (median per document).
    """
    cells: dict[str, dict[str, dict[str, list[ScoredAnswer]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for answer in answers:
        row = cells[answer.group][answer.system]
        row[bucket_of(answer.length)].append(answer)
        row[ALL].append(answer)
    order = [*(bucket_of(high) for high in (*BUCKETS, BUCKETS[-1] + 1)), ALL]
    return {
        group: {system: {name: _cell(row[name]) for name in order if name in row} for system, row in rows.items()}
        for group, rows in cells.items()
    }


def to_markdown(table: dict[str, Any], metric: str = "exact_match") -> str:
    """One markdown table per group: metric ± standard error per bucket, and the median seconds per document of the longest ones."""
    blocks = []
    for group, rows in table.items():
        names = [*dict.fromkeys(name for row in rows.values() for name in row if name != ALL), ALL]
        first = next(iter(rows.values()))
        heads = [f"{_pretty(name)} (n={first[name]['n']})" for name in names]
        label = "EM" if metric == "exact_match" else "F1"
        shown = [
            [system, *(plus_minus(row[name][metric], row[name].get(f"{metric}_se"), 1) for name in names)] for system, row in rows.items()
        ]
        blocks += [f"**{group}**: {label}, per cent ± standard error, by tokens of the document"]
        blocks += [markdown_table(["system", *heads], shown)]
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


def _cell(answers: list[ScoredAnswer]) -> dict[str, Any]:
    scores = summarise([(answer.exact, answer.f1) for answer in answers])
    return {**scores, "seconds": statistics.median(answer.seconds for answer in answers)}


def _pretty(name: str) -> str:
    return name.replace("<=", "≤ ").replace(">", "> ")


def _size(name: str) -> float:
    return float(name.lstrip("<=>")) + (0.5 if name.startswith(">") else 0.0)


def write_report(stem: str | Path, answers: Sequence[ScoredAnswer], about: Mapping[str, Any], title: str) -> dict[str, Any]:
    """Write ``stem``.json and .md.

    Args:
        stem: path without suffix; its folder is made.
        answers: of all systems.
        about: what was compared and on which machine; stored, and listed under the markdown tables.
        title: heading of the markdown.

    Returns:
        The table, as of :func:`tabulate`.
    """
    table = tabulate(answers)
    columns = [field.name for field in dataclasses.fields(ScoredAnswer)]
    rows = {"columns": columns, "rows": [dataclasses.astuple(answer) for answer in answers]}
    notes = "\n".join(f"- {key}: {value}" for key, value in about.items())
    tables = f"{to_markdown(table)}\n{to_markdown(table, 'f1')}"
    store_study(Path(stem), {"about": dict(about), "table": table, "answers": rows}, f"# {title}\n\n{tables}\n{notes}\n")
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
