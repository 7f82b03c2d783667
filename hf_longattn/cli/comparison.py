"""The plan of a conversion, followed by what every mechanism would cost in its place."""

from __future__ import annotations

from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.table import Table

from ..conversion import ConversionPlan
from ..conversion.flops import LENGTHS, MechanismCost, compare_mechanisms, matrix_speed
from .show import print_json, show_plan, size

__all__ = ["print_plan"]

SHOWN = (0, 2, 4, 6)
"""Of LENGTHS, in the table; all of them are in the JSON object."""


def print_plan(plan: ConversionPlan, *, as_json: bool) -> None:
    """What would happen, and the costs of all mechanisms at 1K to 64K tokens."""
    rows = compare_mechanisms(plan.attention, plan.shape)
    if as_json:
        comparison = {"lengths": LENGTHS, "mechanisms": [asdict(row) for row in rows]}
        print_json({**plan.to_dict(), "comparison": comparison})
        return
    show_plan(plan)
    Console().print(_table(rows, matrix_speed()), highlight=False)


def _table(rows: list[MechanismCost], speed: float) -> Table:
    counted = [row for row in rows if not row.refused]
    same = len({row.bytes for row in counted}) == 1  # an encoder keeps nothing, and its widest layer is none of attention's
    title = f"one sequence through the whole model: least seconds at this machine's {speed / 1e9:,.0f} GFLOP/s"
    title = title if same else f"{title} / memory beside the weights"
    table = Table(box=box.SIMPLE, pad_edge=False, title=title, title_style="dim", title_justify="left")
    table.add_column("mechanism", no_wrap=True)
    for index in SHOWN:
        table.add_column(f"{LENGTHS[index] // 1024}K", justify="right", no_wrap=True)
    for row in rows:
        if row.refused:
            table.add_row(row.mechanism, row.refused)
        else:
            seconds = [_number(row.flops[index] / speed) for index in SHOWN]
            beside = ["" if same else f" / {_round(row.bytes[index])}" for index in SHOWN]
            table.add_row(row.mechanism, *map("".join, zip(seconds, beside, strict=True)))
    if same:
        table.add_section()
        table.add_row("memory beside the weights", *(_round(counted[0].bytes[index]) for index in SHOWN))
    return table


def _round(count: int) -> str:
    """A size without decimals, so that four columns stand beside the names in 80 characters."""
    number, unit = size(count).split()
    return f"{float(number.replace(',', '')):,.0f} {unit}"


def _number(seconds: float) -> str:
    return f"{seconds:.2g}" if seconds < 100 else f"{seconds:,.0f}"
