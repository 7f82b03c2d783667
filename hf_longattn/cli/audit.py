"""`longattn audit MODEL`: whether a model, an ONNX file or a server computes the attention that the config says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as flags


def audit(
    context: typer.Context,
    model: Annotated[str, flags.model_argument("A checkpoint, long or not")],
    onnx: Annotated[
        Path | None, typer.Option(help="Audit this ONNX file, or the model.onnx in this folder, against MODEL's config.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Audit an embedding server against MODEL's config and tokenizer: http://…/embed or http://…/v1/embeddings."),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of tokens, or frames of a sound.",
            show_default="2,048 or the model's maximum; a server's is the maximum",
        ),
    ] = None,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Test every output with every token that it must not depend on; the audit says the cost.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(help="Changes up to this share of the largest one count as none; for int8 graphs, for example 0.05.")
    ] = 0.0,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each answer of the server.")] = 60.0,
    attn_implementation: Annotated[
        str | None, typer.Option(help="Load the model with this attention of transformers.", show_default="the checkpoint's")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw what reached what into this image file, which must not exist.")] = None,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Measure how far tokens reach, and compare it with the config.

    Tokens, patches of a picture or frames of a sound are replaced. The outputs that change are compared with those that the config lets
    them reach; where MODEL itself is audited, layer by layer. Exits with 1 if they differ, as when a window was dropped or has another
    width, or an input was cut off.
    """
    if url is None:
        flags.refuse_typed(context, ("--timeout",), "requires --url.")
    from ..audit import audit_reach
    from .show import show_audit
    from .terminal import print_json, say

    if plot is not None:
        from ..drawing import check_image

        check_image(plot)
    result = audit_reach(
        model,
        onnx=onnx,
        url=url,
        length=length,
        exhaustive=exhaustive,
        tolerance=tolerance,
        attn_implementation=attn_implementation,
        timeout=timeout,
        revision=revision,
        token=token,
    )
    audits = [*result.parts.values()]
    if plot is not None:
        from .plot import draw_audit

        if len(audits) > 1:
            raise typer.BadParameter("draws one stack, and this model has towers with mechanisms apart; leave it out.", param_hint="--plot")
        draw_audit(audits[0], plot)
    if as_json:
        print_json({**result.to_dict(), **({"plot": str(plot)} if plot else {})})
    else:
        for audit in audits:
            show_audit(audit)
        for note in result.notes:
            say(note)
        if plot is not None:
            say(f"drawn: {plot}")
    if not result.agrees:
        raise typer.Exit(1)
