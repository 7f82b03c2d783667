"""A diagnosis on the terminal, within 80 columns."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from ..diagnostics.diagnosis import NOTHING_FITS, in_seconds, percent
from . import terminal

if TYPE_CHECKING:
    from ..diagnostics import Diagnosis, PictureDiagnosis

SHOWN_LENGTHS = 5
"""Columns of lengths, the longest ones."""
SHOWN_LAYERS = 16
"""Rows of layers; of deeper models, as many at equal distances."""
WIDTH = 80


def show_diagnosis(diagnosis: Diagnosis, text: Path) -> None:
    """Conclusion, layers, mechanisms, and what to type; ``text`` is the file or folder that was read."""
    console = terminal.console(width=WIDTH)
    console.print(diagnosis.conclusion(), style="bold", highlight=False)
    for sentence in (diagnosis.dilution(), "" if diagnosis.frame_seconds is None else diagnosis.reach(), *diagnosis.notes):
        if sentence:
            console.print(sentence, highlight=False)
    console.print()
    console.print(_layers(diagnosis), highlight=False)
    if heads := diagnosis.needle_heads(3):
        listed = ", ".join(f"head {head} of layer {layer} ({percent(share)})" for layer, head, share in heads)
        console.print(
            f"Most on the needle at {diagnosis.last.length:,} tokens: {listed}; equal weights: {percent(diagnosis.last.needle_uniform)}.\n",
            highlight=False,
        )
    if diagnosis.applicable():
        console.print(_mechanisms(diagnosis), highlight=False)
    if diagnosis.reasons:
        console.print(
            f"not measured for: {', '.join(sorted(map(escape, diagnosis.reasons)))} (--html says why)\n",
            style="dim",
            highlight=False,
        )
    if diagnosis.untrained:
        console.print(
            f"not recommended, since their positions need training: {', '.join(sorted(map(escape, diagnosis.untrained)))} "
            "(--html says why)\n",
            style="dim",
            highlight=False,
        )
    best = diagnosis.recommend()
    if best is not None:
        if best.loss is None and diagnosis.no_loss:
            console.print(f"No loss was measured: {escape(diagnosis.no_loss)}", highlight=False)
        if best.command:
            terminal.say(f"To convert so, type:\n  {best.command}")
        else:
            flags = shlex.join(best.flags)
            terminal.say(f"To convert the checkpoint that this model was made from so, add to longattn convert:\n  {flags}")
    elif diagnosis.untrained:
        console.print(f"Nothing is recommended: {NOTHING_FITS}", highlight=False)
    if search := diagnosis.search_command(str(text)):
        terminal.say(f"For a mechanism in every layer under a budget of measured time, type:\n  {search}")


def _layers(diagnosis: Diagnosis) -> Table:
    lengths = diagnosis.lengths[-SHOWN_LENGTHS:]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="mean over the heads of a layer", title_style="dim", title_justify="left")
    table.add_column("layer", justify="right")
    for row in lengths:
        table.add_column(f"eff. {diagnosis.unit}\nof {row.length:,}", justify="right", no_wrap=True)
    for name in ("largest\nweight", f"first\n{diagnosis.unit}", *(["needle"] if diagnosis.needle is not None else [])):
        table.add_column(name, justify="right", no_wrap=True)
    count = len(diagnosis.last.layers)
    step = -(-count // SHOWN_LAYERS)
    for layer in [number for number in range(count) if number % step == 0 or number == count - 1]:
        last = diagnosis.last.layers[layer]
        spread = [f"{float(row.layers[layer].numbers['effective_tokens'].mean()):,.1f}" for row in lengths]
        shares = [percent(float(last.numbers[name].mean())) for name in ("largest_weight", "first_tokens")]
        needle = [percent(float(last.needle.mean()))] if diagnosis.needle is not None else []
        table.add_row(str(layer), *spread, *shares, *needle)
    return table


def _mechanisms(diagnosis: Diagnosis) -> Table:
    judged, last = (diagnosis.in_words(row.length) for row in (diagnosis.judged, diagnosis.last))
    title = f"kept of the attention at {judged}; cost at {last} as a share of full attention's"
    if diagnosis.frame_seconds is not None:
        title += f"; options count frames of {in_seconds(diagnosis.frame_seconds)}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_style="dim", title_justify="left")
    table.add_column("mechanism", overflow="fold")
    for name in ("kept", "least (layer)", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = diagnosis.candidate_rows()
    for row in (rows[number] for number in diagnosis.applicable()):
        style = "bold green" if row.recommended else "" if row.on_front else "dim"
        least = f"{percent(row.least)} ({row.least_layer})"
        table.add_row(escape(str(row.candidate)), percent(row.mass), least, percent(row.cost), style=style)
    return table


def show_picture(diagnosis: PictureDiagnosis, with_hint: bool = True) -> None:
    """What each mechanism keeps of the attention on a picture; ``with_hint``, how to see the layers."""
    console = terminal.console(width=WIDTH)
    console.print(
        f"{diagnosis.model_class} on {escape(diagnosis.picture)}: {diagnosis.size}, {diagnosis.grid}", style="bold", highlight=False
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="kept of the attention", title_style="dim", title_justify="left")
    table.add_column("mechanism", overflow="fold")
    for name in ("kept", "least (layer)", "pairs"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, (candidate, pairs) in enumerate(zip(diagnosis.candidates, diagnosis.pairs, strict=True)):
        if str(candidate) in diagnosis.reasons:
            continue
        shares = [layer.mass[number] for layer in diagnosis.layers]
        least = min(range(len(shares)), key=shares.__getitem__)
        mean = sum(shares) / len(shares)
        table.add_row(str(candidate), percent(mean), f"{percent(shares[least])} ({least})", percent(pairs / diagnosis.full_pairs))
    console.print(table)
    for name, reason in diagnosis.reasons.items():
        console.print(f"{escape(name)}: {escape(reason)}", style="dim", highlight=False)
    if with_hint:
        console.print(f"--html FILE draws the attention of every layer over the {diagnosis.noun}.", style="dim", highlight=False)
