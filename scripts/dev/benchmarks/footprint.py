"""Peak memory of many mechanisms, or of whole models with them, over doublings of the length, each pass in a fresh process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.options import read_choice

from .case import Case
from .memory import Memory, exponent, measure_memory
from .models.encoders import most_tokens
from .report import machine, markdown_table

STOCK = "stock"
"""The line of transformers' own model."""


def run_footprint(
    mechanisms: Sequence[str],
    lengths: Sequence[int],
    case: Case,
    *,
    kind: str = "attention",
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure each mechanism (``window:window=512``) at every length.

    Args:
        case: shapes, dtype and whether the backward pass runs; mechanism, options and length are replaced.
        kind: ``attention``; or ``model``, a whole model of the case's base, and the stock one as far as it is run.
    Returns:
        The record that is stored: machine, case, and for each mechanism MiB on top of the inputs and the exponent of their growth.
    Raises:
        OptionError: no mechanism or fewer than two lengths; an unknown mechanism or option.
    """
    if not mechanisms or len(lengths) < 2:
        raise OptionError("Growth of memory needs a mechanism and two lengths or more; for example --mechanism window --lengths 4K,16K.")
    results = []
    for line in (*mechanisms, STOCK) if kind == "model" else mechanisms:
        chosen = {"mechanism": "full"} if line == STOCK else read_choice(line)
        mechanism_case = case.at(mechanism=chosen.pop("mechanism"), options=chosen)
        measured: list[Memory] = []
        for length in lengths:
            if line != STOCK or length <= most_tokens(case.base):
                measured.append(measure_memory(kind, "sdpa" if line == STOCK else "longattn", mechanism_case.at(length=length)))
                log(f"{length:>7} {line:<40} {measured[-1].extra:10.1f} MiB on top of the inputs")
        growth = exponent(measured)
        results.append({"mechanism": line, "mebibytes": [round(memory.extra, 1) for memory in measured], "exponent": growth})
    about = {key: value for key, value in dataclasses.asdict(case).items() if key not in ("mechanism", "options", "length")}
    return {"machine": machine(), "kind": "memory", "of": kind, "case": about, "lengths": list(lengths), "results": results}


def footprint_table(record: dict[str, Any]) -> str:
    """Mechanisms × lengths in MiB, and the exponent."""
    rows = []
    for result in record["results"]:
        growth = "–" if result["exponent"] is None else f"{result['exponent']:.2f}"
        sizes = [f"{size:,.0f}" for size in result["mebibytes"]]
        rows.append([f"`{result['mechanism']}`", *sizes, *["–"] * (len(record["lengths"]) - len(sizes)), growth])
    return markdown_table(["MiB", *(f"{length:,}" for length in record["lengths"]), "exponent"], rows)
