"""The result of a search on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from . import terminal

if TYPE_CHECKING:
    from ..search import CostedDesign, SearchResult

WIDTH = 100


def show_search(result: SearchResult) -> None:
    """The design and why it, the alternatives, and what to type."""
    console = terminal.console(width=WIDTH)
    console.print(escape(result.reason), style="bold", highlight=False)
    if result.loss_sentence:
        console.print(escape(result.loss_sentence), highlight=False)
    for note in result.notes:
        console.print(escape(note), highlight=False)
    console.print()
    console.print(_layers(result), highlight=False)
    if result.tried:
        console.print(_designs("designs with the least loss for their cost", result, result.pareto), highlight=False)
    if result.uniform:
        console.print(_designs("the same in every layer", result, result.uniform), highlight=False)
    for name, value in result.compared.items():
        console.print(f"full layers, {name}: {value:.4f} nats of KL divergence", highlight=False)
    if result.reasons:
        console.print(f"left out: {', '.join(sorted(map(escape, result.reasons)))} (report.md says why)", style="dim", highlight=False)
    console.print(f"\nlength {result.target}, cost of attention {result.cost_of(result.chosen)}", highlight=False)
    if result.folder is not None:
        terminal.say(f"written: {result.folder}/report.md, report.json, pareto.svg, design.yaml\nnext: {result.command}")


def _layers(result: SearchResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", justify="right")
    table.add_column("runs")
    judged = any(row.chosen in row.scores for row in result.rows)
    if judged:
        table.add_column("captured mass" if result.score == "mass" else "−KL (nats)", justify="right")
    if result.importance:
        table.add_column("gain if full (nats)", justify="right")
    for number, row in enumerate(result.rows):
        scores = [f"{row.scores[row.chosen]:.3f}" if row.chosen in row.scores else ""] if judged else []
        gains = [f"{result.importance[number]:.4f}"] if result.importance else []
        table.add_row(str(number), escape(row.chosen), *scores, *gains)
    return table


def _designs(title: str, result: SearchResult, designs: Sequence[CostedDesign]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("design", overflow="fold")
    table.add_column("score", justify="right")
    if any(costed.loss is not None for costed in designs):
        table.add_column(result.objective or "loss", justify="right")
    of_time = result.budget is None or not result.budget.of_memory
    table.add_column("cost (of full)" if of_time else "cost", justify="right", no_wrap=True)
    for costed in designs:
        name = str(costed.design).removesuffix(" in every layer")
        score = "" if costed.score is None else f"{costed.score:.3f}"
        loss = [f"{costed.loss:.4f}"] if costed.loss is not None else []
        table.add_row(escape(name), score, *loss, result.cost_of(costed).replace(" of full attention", ""))
    return table
