"""``python -m tests.modes``: runs every cell of the table and writes scripts/dev/results/modes.json and modes.md (an hour on 2 cores)."""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from pathlib import Path

from transformers.utils import logging

from tests.modes.cells import ROWS, Cell
from tests.modes.ways import WAYS

RESULTS = Path(__file__).resolve().parents[2] / "scripts" / "dev" / "results"
SIGNS = {"equal": "=", "refused": "r", "none": "·"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help="only these; the others stay")
    parser.add_argument("--ways", default=",".join(WAYS), help="only the pairs with one of these; the others stay")
    parser.add_argument("--without", default="", help="no pairs with these")
    options = parser.parse_args()
    logging.set_verbosity_error()
    file = RESULTS / "modes.json"
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"] if file.is_file() else {}
    wrong = []
    for row in options.rows.split(","):
        rows = {name: words for name, words in cells.get(row, {}).items() if {*name.split(" × ")} <= {*WAYS}}
        for first, second in itertools.combinations_with_replacement(WAYS, 2):
            if not {first, second} & {*options.ways.split(",")} or {first, second} & {*options.without.split(",")}:
                continue
            name = f"{first} × {second}"
            try:
                rows[name] = str(Cell(row, first, second).outcome())
            except Exception as error:
                rows.pop(name, None)
                wrong.append(f"{row}: {name}: {type(error).__name__}: {str(error).splitlines()[0][:300]}")
                print(wrong[-1], flush=True)
        cells[row] = {f"{a} × {b}": rows[f"{a} × {b}"] for a, b in itertools.combinations_with_replacement(WAYS, 2) if f"{a} × {b}" in rows}
        write(cells)
    print(f"{len(wrong)} wrong; written to {file}")
    raise SystemExit(bool(wrong))


def write(cells: dict[str, dict[str, str]]) -> None:
    """The table as JSON and as a page."""
    (RESULTS / "modes.json").write_text(json.dumps({"cells": cells}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    count = Counter(words.partition(":")[0] for rows in cells.values() for words in rows.values())
    lines = [
        "# Ways to call a model, crossed in pairs",
        "",
        "Every cell runs one model in two ways at once and compares every sequence with what the plain model gives for it alone, in "
        "float64 (8-bit and bf16 layers: with the same layers). `=` equal, `r` refused with one sentence, `·` no such cell (the reason is "
        "in `modes.json`). Written by `python -m tests.modes`; the tests hold every cell to it.",
        "",
        f"{count['equal']} cells equal, {count['refused']} refused, {count['none']} that mean nothing.",
    ]
    for base, rows in cells.items():
        lines += [
            "",
            f"## {base}",
            "",
            "| | " + " | ".join(str(number + 1) for number in range(len(WAYS))) + " |",
            "|---" * (len(WAYS) + 1) + "|",
        ]
        for number, name in enumerate(WAYS):
            signs = []
            for other in WAYS:
                words = rows.get(f"{name} × {other}") or rows.get(f"{other} × {name}") or ""
                signs.append(SIGNS.get(words.partition(":")[0], "?"))
            lines.append(f"| {number + 1} {name} | " + " | ".join(signs) + " |")
    lines += ["", "## Refusals", ""]
    sentences: dict[str, set[str]] = {}
    for base, rows in cells.items():
        for words in rows.values():
            if words.startswith("refused: "):
                sentences.setdefault(words.removeprefix("refused: "), set()).add(base)
    for sentence, bases in sorted(sentences.items()):
        lines.append(f"- {sentence} ({', '.join(sorted(bases))})")
    (RESULTS / "modes.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
