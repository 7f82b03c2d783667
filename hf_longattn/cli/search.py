"""`longattn search MODEL TEXT`, with a flag for every setting of :class:`.SearchConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..search.config import SearchConfig
from . import options as flags


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
    from .terminal import print_json, progress, show

    with progress() as tell:
        result = search_design(model, text, output, config, progress=tell)
    if as_json:
        print_json(result.to_dict())
    else:
        show(result.report())
