"""Stored results of a QA evaluation: JSON with everything, markdown and a drawing of the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from research.qa_run import ScoredAnswer
from research.qa_table import draw, tabulate, to_markdown


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
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    table = tabulate(answers)
    stem.with_suffix(".json").write_text(_to_json(answers, about, table), encoding="utf-8")
    notes = "\n".join(f"- {key}: {value}" for key, value in about.items())
    stem.with_suffix(".md").write_text(f"# {title}\n\n{both_markdown(table)}\n{notes}\n", encoding="utf-8")
    if find_spec("matplotlib"):
        draw(table, stem.with_suffix(".svg"))
        draw(table, stem.with_suffix(".png"))
    return table


def both_markdown(table: dict[str, Any]) -> str:
    """Exact match and seconds, then F1."""
    return to_markdown(table) + "\n" + to_markdown(table, "f1", seconds=False)


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
                    "standard_error": round(cell["exact_match_se"], 2),
                    "split": "test",
                }
            )
    return rows


def read_answers(path: str | Path) -> list[ScoredAnswer]:
    """Return the answers that :func:`write_report` stored."""
    stored = json.loads(Path(path).read_text(encoding="utf-8"))["answers"]
    return [ScoredAnswer(**dict(zip(stored["columns"], row, strict=True))) for row in stored["rows"]]


def _to_json(answers: Sequence[ScoredAnswer], about: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """Return the record as JSON: indented, but one answer per line."""
    head = json.dumps({"about": dict(about), "table": table}, indent=1).removesuffix("\n}")
    columns = json.dumps(list(ScoredAnswer.__dataclass_fields__))
    rows = ",\n".join(json.dumps(list(_rounded(answer).values()), ensure_ascii=False) for answer in answers)
    return f'{head},\n "answers": {{"columns": {columns}, "rows": [\n{rows}\n]}}\n}}\n'


def _rounded(answer: ScoredAnswer) -> dict[str, Any]:
    record = answer.to_dict()
    return {**record, "f1": round(record["f1"], 4), "seconds": round(record["seconds"], 4)}
