"""The stored outcome of every pair of ways: scripts/dev/results/modes.json, and the same as a page."""

from __future__ import annotations

from collections import Counter
from itertools import combinations_with_replacement

from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import store_study, stored_study

from .ways import WAYS

FILE = RESULTS / "modes"
SIGNS = {"equal": "=", "refused": "r", "none": "·"}
Cells = dict[str, dict[str, str]]
"""Row -> "one way × another" -> the outcome in words."""


def stored_cells() -> Cells:
    """The stored outcomes."""
    stored = stored_study(FILE)
    outcomes, ways = stored.get("outcomes", []), stored.get("ways", [])
    cells: Cells = {}
    for row, lines in stored.get("rows", {}).items():
        numbers = iter([number for line in lines for number in line])
        pairs = [f"{first} × {second}" for first, second in combinations_with_replacement(ways, 2)]
        cells[row] = {pair: outcomes[number] for pair in pairs if (number := next(numbers)) is not None}
    return cells


def store(cells: Cells) -> None:
    """Write the outcomes, which are stored as numbers into a list of all outcomes, and the page."""
    outcomes = ["equal", *sorted({words for row in cells.values() for words in row.values()} - {"equal"})]
    rows = {
        row: [
            [
                outcomes.index(words) if (words := pairs.get(f"{first} × {second}")) else None
                for second in [*WAYS][start:]
            ]
            for start, first in enumerate(WAYS)
        ]
        for row, pairs in cells.items()
    }
    store_study(FILE, {"ways": list(WAYS), "outcomes": outcomes, "rows": rows}, page(cells))


def page(cells: Cells) -> str:
    """The table of every row, and the reasons."""
    count = Counter(words.partition(":")[0] for pairs in cells.values() for words in pairs.values())
    lines = [
        "# Ways to call a model, crossed in pairs",
        "",
        "Every cell runs one model in two ways at once and compares every sequence with what the plain model gives "
        "for it alone, in float64 (8-bit and bf16 layers: with the same layers). `=` equal, `r` refused with one "
        "sentence, `·` no such cell. Written by `python -m tests.modes`; the tests hold every cell to it. Line n is "
        "way n with itself and with those after it:",
        "",
        *(f"{number}. {name}" for number, name in enumerate(WAYS, 1)),
        "",
        f"{count['equal']} cells equal, {count['refused']} refused, {count['none']} that mean nothing.",
    ]
    for row, pairs in cells.items():
        lines += ["", f"## {row}", "", "```text"]
        for start, first in enumerate(WAYS):
            signs = (
                SIGNS.get(pairs.get(f"{first} × {second}", "").partition(":")[0], "?") for second in [*WAYS][start:]
            )
            lines.append(f"{start + 1:>2} {' ' * start}{''.join(signs)}")
        lines.append("```")
    bases: dict[str, list[str]] = {}
    for row, pairs in cells.items():
        for words in sorted({*pairs.values()} - {"equal"}):
            bases.setdefault(words, []).append(row)
    lines += ["", "## Why not", "", *(f"- {words} ({', '.join(rows)})" for words, rows in sorted(bases.items()))]
    return "\n".join(lines) + "\n"
