"""`longattn export MODEL OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as flags

__all__ = ["export"]


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A long checkpoint folder, or a Hub repository id.")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    format: Annotated[str, typer.Option(help="onnx, or torch for torch.export.load.")] = "onnx",
    opset: Annotated[int | None, typer.Option(min=18, max=25, help="Of ONNX.", show_default="PyTorch's")] = None,
    task: Annotated[
        str | None, typer.Option(help="Which head, for example feature-extraction.", show_default="the one it was saved with")
    ] = None,
    global_attention_mask: Annotated[
        bool, typer.Option("--global-attention-mask", help="Make this an input; otherwise global tokens are the configuration's.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT once the new one is complete.")] = False,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Write a long checkpoint as one graph for all lengths, and compare it with the model.

    OUT appears complete and equal to the model at three lengths, or not at all.
    """
    from ..conversion import export_checkpoint
    from .show import print_json, show_export

    report = export_checkpoint(
        model, destination, format=format, opset=opset, task=task, global_attention_mask=global_attention_mask, overwrite=overwrite,
        revision=revision, token=token,
    )  # fmt: skip
    print_json(report.to_dict()) if as_json else show_export(report)
