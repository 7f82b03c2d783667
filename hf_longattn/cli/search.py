"""`longattn search MODEL TEXT`: a mechanism for every layer under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as flags
from .help import HelpAll


def search(
    context: typer.Context,
    model: Annotated[
        str,
        flags.model_argument("A checkpoint that is not converted yet"),
    ],
    text: Annotated[
        Path,
        typer.Argument(metavar="TEXT", help="A UTF-8 text file like those that the model will read; or a folder of images or recordings."),
    ],
    output: Annotated[Path, typer.Option(help="The folder of the search: report, image, trials, and design.yaml for `longattn convert`.")],
    budget: Annotated[
        str,
        typer.Option(
            help="What the attention of all layers may cost for one text: a share of full attention's time (0.25), seconds (1.5s) or "
            "memory (200MB); with --mode full-layers, the number of layers that keep full attention."
        ),
    ] = "0.25",
    length: Annotated[
        int | None, typer.Option(min=1, help="Maximum length of the result, in tokens.", show_default="the checkpoint's")
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS", help="Size of the result's images: 1024, or height and width, 768x1024.", show_default="the checkpoint's"
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Number of frames of the result's videos.", show_default="the checkpoint's")
    ] = None,
    audio_seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Duration of the result's sounds.", show_default="the checkpoint's")
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MECHANISM[:NAME=VALUE,...]",
            help="A mechanism that layers may run, for example window:window=256. Repeatable.",
            show_default="windows of several widths, longformer, bigbird, lsg, block_top_k, full; for images those on grids; for sound "
            "chunked, too",
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="mechanisms, or full-layers: which layers keep full attention while all others run --candidate.")
    ] = "mechanisms",
    score: Annotated[
        str,
        typer.Option(
            help="How stage 1 judges a candidate in a layer: mass, the share of the softmax that it keeps, or kl, what it changes in the "
            "predictions."
        ),
    ] = "mass",
    trials: Annotated[int, typer.Option(min=0, help="Stage 2: number of designs tried on the whole model.")] = 0,
    objective: Annotated[
        str, typer.Option(help="What stage 2 measures: loss, held-out at --length, or kl, the divergence from the checkpoint.")
    ] = "loss",
    workers: Annotated[int, typer.Option(min=1, help="Processes of stage 2; they share the processor threads.")] = 1,
    transfer_steps: Annotated[
        int, typer.Option(min=0, help="Steps of attention transfer for candidates with parameters before they are judged.")
    ] = 0,
    pieces: Annotated[int, typer.Option(min=1, help="Pieces of TEXT, or images, that are read at most.")] = 4,
    compare_at: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens, pixels of an image's sides, or seconds of sound at which candidates are judged.",
            show_default="what the checkpoint was trained to read; for images --image-size, for sound --audio-seconds up to 60",
        ),
    ] = None,
    positions: Annotated[str, typer.Option(help="How positions are extended, as --positions of `longattn convert`.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of stage 2, and of the attention transfer.")] = 0,
    device: flags.Device = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search in --output with the same settings.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the search in --output.")] = False,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
    help_all: HelpAll = False,
) -> None:
    """Choose a mechanism for every layer under a budget.

    The budget is of time or memory. The search measures what each candidate keeps of every layer's attention, and what it costs on this
    machine. With --trials it then tries whole designs. The result is converted with `longattn convert MODEL DST --config
    OUTPUT/design.yaml`.
    """
    if not trials:
        flags.refuse_typed(context, ("--objective", "--workers"), "is for stage 2, which requires --trials.")
    if not (trials or transfer_steps):
        flags.refuse_typed(context, ("--seed",), "requires --trials or --transfer-steps; nothing else is drawn at random.")
    if mode == "full-layers":
        flags.refuse_typed(context, ("--score",), "is for --mode mechanisms; full-layers judges by kl.")
    from ..search import search_design
    from .terminal import print_json, progress, say, show

    try:
        with progress() as tell:
            result = search_design(**flags.arguments(search_design, locals(), candidates=candidate, progress=tell))
    except KeyboardInterrupt:
        say("Stopped; type the same command with --resume to continue.", stderr=True)
        raise typer.Exit(130) from None
    if as_json:
        print_json(result.to_dict())
    else:
        show(result.report())
