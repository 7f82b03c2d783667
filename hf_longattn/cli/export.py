"""`longattn export MODEL OUT` and `longattn revert MODEL DST`: what a long checkpoint is turned into."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from . import options as flags

__all__ = ["export", "revert"]


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A long checkpoint: a folder or a Hub repository id.")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    format: Annotated[str, typer.Option(help="onnx, or torch (for torch.export.load).")] = "onnx",
    opset: Annotated[int | None, typer.Option(min=18, max=25, help="ONNX opset.", show_default="PyTorch's")] = None,
    task: Annotated[
        str | None, typer.Option(help="The head, for example feature-extraction.", show_default="the one it was saved with")
    ] = None,
    global_attention_mask: Annotated[
        bool,
        typer.Option("--global-attention-mask", help="Make this an input of the graph; otherwise the config determines the global tokens."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT once the new one is complete.")] = False,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Export a long checkpoint as one graph for all lengths, and compare it with the model.

    OUT appears complete, and equal to the model at three lengths, or not at all.
    """
    from ..conversion import export_checkpoint
    from .show import print_json, show_export

    report = export_checkpoint(
        model, destination, format=format, opset=opset, task=task, global_attention_mask=global_attention_mask, overwrite=overwrite,
        revision=revision, token=token,
    )  # fmt: skip
    print_json(report.to_dict()) if as_json else show_export(report)


def revert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A long checkpoint: a folder or a Hub repository id.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make.")],
    max_length: Annotated[
        int | None, typer.Option(help="Maximum length of the result, in tokens.", min=1, show_default="that of the source")
    ] = None,
    positions: Annotated[
        str,
        typer.Option(
            help="Position table: auto restores the rows before the conversion, truncate keeps the first ones, "
            "interpolate resizes the whole table."
        ),
    ] = "auto",
    dtype: flags.Dtype = None,
    max_shard_size: flags.ShardSize = None,
    verify_text: flags.VerifyText = None,
    no_verify: flags.NoVerify = False,
    overwrite: flags.Overwrite = False,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Turn a long checkpoint back into one of its base architecture, which loads without this package.

    DST appears complete and verified, or not at all.
    """
    from ..conversion import revert_checkpoint
    from .show import conversion_progress, print_json, show_report

    with conversion_progress() as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are in the report
        report = revert_checkpoint(
            model,
            destination,
            max_length=max_length,
            positions=positions,
            dtype=dtype,
            max_shard_size=max_shard_size,
            verify=not no_verify,
            overwrite=overwrite,
            revision=revision,
            token=token,
            verify_text=verify_text,
            progress=progress,
        )
    print_json({"destination": str(report.destination), **report.to_dict()}) if as_json else show_report(report)
