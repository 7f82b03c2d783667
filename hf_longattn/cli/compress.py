"""`longattn compress MODEL DST`: a checkpoint with fewer bits, heads or feed-forward units."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as flags
from .terminal import Part, show, table

if TYPE_CHECKING:
    from ..export import CompressionReport


def compress(
    context: typer.Context,
    model: Annotated[str, flags.model_argument("A checkpoint, long or not")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    method: Annotated[str, typer.Option(help="int8, int8-weight-only, bf16, prune-heads or prune-ffn.")],
    share: Annotated[float, typer.Option(help="Share of heads or feed-forward units to prune.")] = 0.25,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text to measure importance and losses on.", show_default="built-in English")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of the long inputs.", show_default="4,096, or what model and text have")
    ] = None,
    documents: Annotated[int, typer.Option(help="Pieces of the text to measure on.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of masked tokens.")] = 0,
    overwrite: flags.Overwrite = False,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Write a smaller checkpoint, and measure what it costs.

    Quantised weights are torchao's, in files that from_pretrained loads where torchao is installed. The result is read again, compared,
    and its loss at short and long lengths, its time and its size are printed next to those of the source; all are in
    compression_report.json.
    """
    from ..export import CompressionConfig, compress_checkpoint
    from ..export.compress import PRUNING

    if method not in PRUNING:
        flags.refuse_typed(context, ("--share",), f"is for {' and '.join(PRUNING)}, not for --method {method}; leave it out.")
    config = CompressionConfig(method=method, share=share, text=text, length=length, documents=documents, seed=seed)
    report = compress_checkpoint(model, destination, config, overwrite=overwrite, revision=revision, token=token)
    show(report.to_dict(), _report(report), as_json=as_json)


def _report(report: CompressionReport) -> Iterator[Part]:
    """What a compression costs and saves."""
    outputs = [
        f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in values.items())
        for name, values in report.outputs.items()
    ]
    yield {
        "written": str(report.destination),
        "method": report.config["method"],
        "changed": report.changed_in_words(),
        "outputs": "; ".join(outputs),
        "measured on": report.text,
    }
    yield table(("", "before", "after"), report.rows())
