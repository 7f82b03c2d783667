"""`longattn export MODEL OUT`: what a long checkpoint is turned into."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ExportError, nearest
from . import options as flags

EXPORT_FORMATS = ("onnx", "torch", "native")

Model = Annotated[str, flags.model_argument("A long checkpoint")]


def export(
    context: typer.Context,
    model: Model,
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    format: Annotated[
        str,
        typer.Option(help="onnx, torch (torch.export.load), or native (a stock architecture of transformers that computes it)."),
    ] = "onnx",
    opset: Annotated[int | None, typer.Option(min=18, max=25, help="ONNX opset.", show_default="PyTorch's")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="The task of the model's head, for example feature-extraction.",
            show_default="that of the saved head",
        ),
    ] = None,
    global_attention_mask: Annotated[
        bool,
        typer.Option(
            "--global-attention-mask",
            help="Add this input to the graph (native: every call will give it); otherwise the config determines the global tokens.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT once the new one is complete.")] = False,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Export a long checkpoint as a graph or a stock checkpoint.

    The result is checked. A graph takes any batch size and length. OUT appears complete, and equal to the model at three lengths, or not
    at all. A decoder's graph reads a whole text at once, without a cache.
    """
    from ..export import export_checkpoint, export_native
    from .show import conversion_progress, show_export, show_report
    from .terminal import print_json, say

    if format not in EXPORT_FORMATS:
        raise ExportError(f"Unknown format {format!r}; expected {', '.join(EXPORT_FORMATS)}.{nearest(format, EXPORT_FORMATS)}")
    if format != "onnx":
        flags.refuse_typed(context, ("--opset",), f"is for ONNX graphs, not for --format {format}; leave one of them out.")
    if format == "native":
        flags.refuse_typed(context, ("--task",), "is for graphs; the native twin has the head of the checkpoint.")
        with conversion_progress() as progress:
            twin = export_native(
                model, destination, global_attention_mask=global_attention_mask, overwrite=overwrite, revision=revision, token=token,
                progress=progress,
            )  # fmt: skip
        print_json({"destination": str(twin.destination), **twin.to_dict()}) if as_json else show_report(twin)
        return
    report = export_checkpoint(
        model, destination, format=format, opset=opset, task=task, global_attention_mask=global_attention_mask,
        overwrite=overwrite, revision=revision, token=token, progress=partial(say, stderr=True),
    )  # fmt: skip
    print_json({"destination": str(report.destination), **report.to_dict()}) if as_json else show_export(report)
