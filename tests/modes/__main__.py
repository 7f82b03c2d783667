"""``python -m tests.modes``: runs every cell of the table and writes scripts/dev/results/modes.json and modes.md (an
hour on 2 cores)."""

from __future__ import annotations

import argparse
import itertools

from transformers.utils import logging

from tests.modes.crossings import ROWS, Crossing
from tests.modes.stored import FILE, store, stored_cells
from tests.modes.ways import WAYS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help="only these; the others stay")
    parser.add_argument("--ways", default=",".join(WAYS), help="only the pairs with one of these; the others stay")
    parser.add_argument("--without", default="", help="no pairs with these")
    options = parser.parse_args()
    logging.set_verbosity_error()
    cells = stored_cells()
    wrong = []
    for row in options.rows.split(","):
        rows = {name: words for name, words in cells.get(row, {}).items() if {*name.split(" × ")} <= {*WAYS}}
        for first, second in itertools.combinations_with_replacement(WAYS, 2):
            if not {first, second} & {*options.ways.split(",")} or {first, second} & {*options.without.split(",")}:
                continue
            name = f"{first} × {second}"
            try:
                rows[name] = str(Crossing(row, first, second).outcome())
            except Exception as error:
                rows.pop(name, None)
                wrong.append(f"{row}: {name}: {type(error).__name__}: {str(error).splitlines()[0][:300]}")
                print(wrong[-1], flush=True)
        cells[row] = {
            f"{a} × {b}": rows[f"{a} × {b}"]
            for a, b in itertools.combinations_with_replacement(WAYS, 2)
            if f"{a} × {b}" in rows
        }
        store(cells)
    print(f"{len(wrong)} wrong; written to {FILE}.json")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
