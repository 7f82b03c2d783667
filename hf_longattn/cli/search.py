"""`longattn search MODEL TEXT`, with a flag for every setting of :class:`.SearchConfig`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.styled import Styled

from ..search.config import SearchConfig
from . import options as flags
from .terminal import Line, Part, progress, show, table

if TYPE_CHECKING:
    from ..search.result import SearchResult


@flags.takes_settings(SearchConfig)
def search(
    model: Annotated[str, flags.model_argument("A checkpoint that is not converted yet")],
    text: Annotated[
        Path,
        typer.Argument(metavar="TEXT", help="A UTF-8 text file like those that the model will read; or a folder of images or recordings."),
    ],
    output: Annotated[Path, typer.Option(help="The new YAML file of the design, for `longattn convert --config`.")],
    config: SearchConfig,
    as_json: flags.Json = False,
) -> None:
    """Choose a mechanism for every layer under a budget.

    The budget is of time or memory. The search measures what each candidate keeps of every layer's attention, and what it costs on this
    machine. The result is converted with `longattn convert MODEL DST --config OUTPUT`.
    """
    from ..search import search_design

    with progress() as tell:
        result = search_design(model, text, output, config, progress=tell)
    show(result.to_dict(), _report(result), as_json=as_json)


def _report(result: SearchResult) -> Iterator[Part]:
    """The design and why it, and what it was chosen from."""
    yield Styled(result.reason, "bold")
    yield from filter(None, (result.loss_sentence, *result.notes, " "))
    score = "captured mass" if result.score == "mass" else "−KL (nats)"
    scores = [f"{row.scores[row.chosen]:.3f}" if row.chosen in row.scores else "" for row in result.rows]
    yield table(("layer", "runs", score), [(f"{layer}", row.chosen, scores[layer]) for layer, row in enumerate(result.rows)], align="rlr")
    uniform = [
        (design.design.names[0], "" if design.score is None else f"{design.score:.3f}", result.cost_of(design)) for design in result.uniform
    ]
    yield table(("design", score, "cost"), uniform, "the same in every layer")
    if result.reasons:
        yield f"left out: {', '.join(sorted(result.reasons))} (--json says why)"
    yield f"length {result.target}, cost of attention {result.cost_of(result.chosen)}"
    yield Line(f"written: {result.file}\nnext: {result.command}")
