"""`longattn diagnose MODEL TEXT`: what a model attends to as its text or sound grows, or on a photo, and what mechanisms would keep."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..constants import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from ..errors import check_extra
from ..staging import check_new_file, write_text
from . import options as flags

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings of the names of files that are read as pictures."""


def diagnose(
    context: typer.Context,
    model: Annotated[
        str,
        flags.model_argument("A long or short checkpoint"),
    ],
    text: Annotated[
        Path,
        typer.Argument(
            metavar="TEXT",
            help="A UTF-8 text file, at least as long as the longest length; for a model of pictures a photo (.jpg, .png …), for one of "
            "sound a recording (.wav, .flac …) or a folder of them, for one of videos a folder of frames or an array (.npy).",
        ),
    ],
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Numbers of tokens, for example 512,2K,8K.",
            show_default="512,1K,2K,4K,8K as far as model and text reach",
        ),
    ] = None,
    audio_seconds: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS,...",
            help="Durations to which recordings are cut, for example 30 or 15,60,300.",
            show_default="7.5,15,30 as far as model and recordings reach",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the report as one HTML page into this file, which must not exist; needs matplotlib.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write all numbers as JSON into this file, which must not exist.")] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MECHANISM[:NAME=VALUE,...]",
            help="A mechanism to compare, for example window:window=512. Repeatable.",
            show_default="all of them, with usual options; for a photo, those on a grid",
        ),
    ] = None,
    extend: Annotated[
        str | None,
        typer.Option(
            metavar="POSITIONS",
            help="Extend the positions to the longest length, as --positions of `longattn convert`: tile, interpolate, rope:yarn …",
        ),
    ] = None,
    mechanism: Annotated[
        str | None,
        typer.Option(
            metavar="MECHANISM[:NAME=VALUE,...]",
            help="With --extend: what the layers run, for example window:window=512.",
            show_default="what `longattn convert` chooses",
        ),
    ] = None,
    within_mechanism: Annotated[
        bool, typer.Option("--within-mechanism", help="Measure the softmax over the keys that each layer's mechanism keeps, not over all.")
    ] = False,
    queries: Annotated[
        int, typer.Option(min=1, help="Queries measured at each length or duration, spread over the text or sounds.")
    ] = 1024,
    needle: Annotated[
        str | None, typer.Option(help="A sentence to plant in the text.", show_default="one about a secret number of Lisbon")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="What comes at the end of the text and asks for the needle; required with --needle.")
    ] = None,
    depths: Annotated[
        str, typer.Option(metavar="SHARE,...", help="Where the needle is planted, as shares of the text before it.")
    ] = "0.1,0.5,0.9",
    no_needle: Annotated[bool, typer.Option("--no-needle", help="Plant no needle.")] = False,
    device: flags.Device = None,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Show how attention dilutes with length, head by head, or where it goes on a photo.

    Every layer is shown, with what mechanisms would keep of its attention. The numbers come from the model's own queries and keys. --html
    writes a page with pictures that opens offline; for a photo, what each layer attends to is drawn over it. For recordings, lengths are
    in frames and seconds.
    """
    if (needle is None) != (question is None):
        raise typer.BadParameter("--needle and --question are given together.", param_hint="--needle")
    if no_needle:
        flags.refuse_typed(context, ("--needle", "--depths"), "contradicts --no-needle.")
    for file in (html, save):
        if file is not None:
            check_new_file(file)
    if html is not None:
        check_extra("plot", "matplotlib")

    for_texts = ("--lengths", "--extend", "--mechanism", "--needle", "--no-needle", "--depths")
    for_sound = ("--audio-seconds",)
    refuse = partial(flags.refuse_typed, context)
    frames, sound = _holds_frames(text), _holds_sound(text)
    drawn = frames or text.suffix.lower() in PICTURE_SUFFIXES
    if drawn:
        what = "a picture" if text.suffix.lower() in PICTURE_SUFFIXES else "a video"
        refuse((*for_texts, "--within-mechanism"), f"is for texts, but {str(text)!r} is {what}; leave it out.")
        refuse(for_sound, f"is for recordings, but {str(text)!r} is {what}; leave it out.")
    elif sound:
        refuse(for_texts, f"is for texts, but {str(text)!r} is sound; leave it out, or give durations as --audio-seconds.")
        from ..diagnostics.pictures import is_drawn

        drawn = is_drawn(model, revision=revision, token=token)
        if drawn:
            refuse(
                (*for_sound, "--within-mechanism"),
                "is not for a model of spectrograms, whose feature extractor cuts recordings; leave it out.",
            )
    else:
        refuse(for_sound, f"is for recordings, but {str(text)!r} is none; leave it out, or give a recording.")

    from ..diagnostics import Diagnosis, PictureDiagnosis, diagnose_picture, diagnose_sound, html_page
    from ..diagnostics import diagnose as diagnose_text
    from ..diagnostics.report import diagnosis_report
    from ..diagnostics.texts import NEEDLE, QUESTION, Needle, read_depths, read_lengths
    from .terminal import progress, report_results, show

    settings: dict[str, Any] = {
        "candidates": candidate, "queries": queries, "device": device, "revision": revision, "token": token
    }  # fmt: skip
    found: Diagnosis | PictureDiagnosis
    if drawn:
        found = diagnose_picture(model, text, **settings)
        report = found.report()
        report.say("" if html else f"--html FILE draws the attention of every layer over the {found.noun}.", "quiet", only="terminal")
    else:
        seconds = None if audio_seconds is None else _read_durations(audio_seconds)
        with progress() as tell:
            settings |= {"within_mechanism": within_mechanism, "progress": tell}
            if sound:
                found = diagnose_sound(model, text, audio_seconds=seconds, **settings)
            else:
                found = diagnose_text(
                    model,
                    text,
                    lengths=None if lengths is None else read_lengths(lengths.split(",")),
                    needle=None if no_needle else Needle(needle or NEEDLE, question or QUESTION, read_depths(depths)),
                    extend=extend,
                    mechanism=flags.parse_mechanism(mechanism, "--mechanism"),
                    **settings,
                )
        report = diagnosis_report(found, str(text))
    report_results(
        found, lambda: show(report), save=save, as_json=as_json,
        page=html, draw=lambda file: write_text(file, html_page(found), overwrite=False),
    )  # fmt: skip


def _holds_sound(path: Path) -> bool:
    """Whether it is a recording, or a folder with recordings."""
    if path.is_dir():
        return any(file.suffix.lower() in AUDIO_SUFFIXES for file in path.rglob("*"))
    return path.suffix.lower() in AUDIO_SUFFIXES


def _holds_frames(path: Path) -> bool:
    """Whether it is a video: a folder of pictures, an array, or a file of a codec."""
    if path.is_dir():
        return any(file.suffix.lower() in PICTURE_SUFFIXES for file in path.iterdir())
    return path.suffix.lower() in VIDEO_SUFFIXES


def _read_durations(text: str) -> list[float]:
    """``"15,60"`` as numbers; anything else is a usage error."""
    try:
        return [float(seconds) for seconds in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r:.60} are not seconds; give for example 30, or 15,60,300.", param_hint="--audio-seconds"
        ) from None
