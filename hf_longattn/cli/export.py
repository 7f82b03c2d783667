"""`longattn export MODEL OUT`: what a long checkpoint is turned into."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

from . import options as flags
from .convert import checks, conversion_report
from .terminal import Part, progress, say, show

if TYPE_CHECKING:
    from ..export import ExportReport


def export(
    context: typer.Context,
    model: Annotated[str, flags.model_argument("A long checkpoint")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    format: Annotated[str, typer.Option(help="onnx, torch (torch.export.load), or native (a stock model of transformers).")] = "onnx",
    opset: Annotated[int | None, typer.Option(min=18, max=25, help="ONNX opset.", show_default="PyTorch's")] = None,
    task: Annotated[
        str | None, typer.Option(help="The head's task, for example feature-extraction.", show_default="the saved head's")
    ] = None,
    global_attention_mask: Annotated[
        bool, typer.Option("--global-attention-mask", help="Take this input; otherwise the config determines the global tokens.")
    ] = False,
    overwrite: flags.Overwrite = False,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Export a long checkpoint as a graph or a stock checkpoint.

    The result is checked. A graph takes any batch size and length. OUT appears complete, and equal to the model at three lengths, or not
    at all. A decoder's graph reads a whole text at once, without a cache.
    """
    from ..export import export_checkpoint, export_native

    if format != "onnx":
        flags.refuse_typed(context, ("--opset",), f"is for ONNX graphs, not for --format {format}; leave one of them out.")
    shared: dict[str, Any] = {"overwrite": overwrite, "revision": revision, "token": token}
    if format == "native":
        flags.refuse_typed(context, ("--task", "--global-attention-mask"), "is for graphs, not for --format native; leave it out.")
        with progress() as tell:
            stock = export_native(model, destination, progress=tell, **shared)
        show({"destination": str(stock.destination), **stock.to_dict()}, conversion_report(stock), as_json=as_json)
        return
    log = partial(say, stderr=True)
    inputs: dict[str, Any] = {"global_attention_mask": global_attention_mask, "task": task}
    graph = export_checkpoint(model, destination, format=format, opset=opset, progress=log, **inputs, **shared)
    show({"destination": str(graph.destination), **graph.to_dict()}, _report(graph), as_json=as_json)


def _report(graph: ExportReport) -> Iterator[Part]:
    """What was written, its inputs and outputs, and the comparison with the model."""
    form = graph.format if graph.opset is None else f"{graph.format}, opset {graph.opset}"
    yield {
        "written": f"{graph.destination}  ({decimal(graph.bytes_written)})",
        "graph": f"{graph.class_name}, {form}, any batch size, {graph.min_length:,} to {graph.max_length:,} tokens",
        "inputs": ", ".join(graph.inputs),
        "outputs": ", ".join(graph.outputs),
    }
    yield checks(graph.checks)
