"""A diagnosis on the terminal, within 80 columns."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from ..diagnostics.diagnosis import NOTHING_FITS, percent
from . import terminal

if TYPE_CHECKING:
    from ..diagnostics import Diagnosis

SHOWN_LENGTHS = 5
"""Columns of lengths, the longest ones."""
SHOWN_LAYERS = 16
"""Rows of layers; of deeper models, as many at equal distances."""
WIDTH = 80


@contextlib.contextmanager
def diagnosis_progress() -> Iterator[Callable[[str], None]]:
    """What is being measured, on stderr while it is a terminal."""
    console = terminal.console(stderr=True)
    if not console.is_terminal:
        yield lambda sentence: None
        return
    with console.status("loading") as status:
        yield lambda sentence: status.update(sentence)


def show_diagnosis(found: Diagnosis, text: Path) -> None:
    """Conclusion, layers, mechanisms, and what to type; ``text`` is the file that was read."""
    console = terminal.console(width=WIDTH)
    console.print(found.conclusion(), style="bold", highlight=False)
    for sentence in (found.dilution(), *found.notes):
        if sentence:
            console.print(sentence, highlight=False)
    console.print()
    console.print(_layers(found), highlight=False)
    if heads := found.needle_heads(3):
        told = ", ".join(f"head {head} of layer {layer} ({percent(share)})" for layer, head, share in heads)
        console.print(
            f"Most on the needle at {found.last.length:,} tokens: {told}; equal weights: {percent(found.last.needle_uniform)}.\n",
            highlight=False,
        )
    if found.applicable():
        console.print(_mechanisms(found), highlight=False)
    if found.reasons:
        console.print(
            f"no such number for: {', '.join(sorted(escape(one) for one in found.reasons))} (--html says why)\n",
            style="dim",
            highlight=False,
        )
    if found.untrained:
        console.print(
            f"not recommended, since their positions need training: {', '.join(sorted(escape(one) for one in found.untrained))} "
            "(--html says why)\n",
            style="dim",
            highlight=False,
        )
    best = found.recommend()
    if best is not None:
        if best.loss is None and found.no_loss:
            console.print(f"No loss was measured: {escape(found.no_loss)}", highlight=False)
        if best.command:
            terminal.say(f"To convert so, type:\n  {best.command}")
        else:
            flags = shlex.join(best.flags)
            terminal.say(f"To convert the checkpoint that this model was made from so, add to longattn convert:\n  {flags}")
    elif found.untrained:
        console.print(f"Nothing is recommended: {NOTHING_FITS}", highlight=False)
    if search := found.search_command(str(text)):
        terminal.say(f"For a mechanism in every layer under a budget of measured time, type:\n  {search}")


def _layers(found: Diagnosis) -> Table:
    lengths = found.lengths[-SHOWN_LENGTHS:]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="mean over the heads of a layer", title_style="dim", title_justify="left")
    table.add_column("layer", justify="right")
    for one in lengths:
        table.add_column(f"eff. tokens\nof {one.length:,}", justify="right", no_wrap=True)
    for name in ("largest\nweight", "first\ntokens", *(["needle"] if found.needle is not None else [])):
        table.add_column(name, justify="right", no_wrap=True)
    count = len(found.last.layers)
    step = -(-count // SHOWN_LAYERS)
    for layer in [number for number in range(count) if number % step == 0 or number == count - 1]:
        last = found.last.layers[layer]
        spread = [f"{float(one.layers[layer].numbers['effective_tokens'].mean()):,.1f}" for one in lengths]
        beside = [percent(float(last.numbers[name].mean())) for name in ("largest_weight", "first_tokens")]
        needle = [percent(float(last.needle.mean()))] if found.needle is not None else []
        table.add_row(str(layer), *spread, *beside, *needle)
    return table


def _mechanisms(found: Diagnosis) -> Table:
    at, best = found.judged, found.recommend()
    title = f"kept of the attention at {at.length:,} tokens; cost at {found.last.length:,} tokens as a share of full attention's"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_style="dim", title_justify="left")
    table.add_column("mechanism", overflow="fold")
    for name in ("kept", "least (layer)", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    front = set(found.front())
    for number in found.applicable():
        candidate, kept = found.candidates[number], at.captured()[..., number].nanmean(1)
        chosen = best is not None and candidate is best.candidate
        style = "bold green" if chosen else "" if number in front else "dim"
        least = f"{percent(float(kept.min()))} ({int(kept.argmin())})"
        table.add_row(escape(str(candidate)), percent(float(kept.mean())), least, percent(found.cost(number)), style=style)
    return table
