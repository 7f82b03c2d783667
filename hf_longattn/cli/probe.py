"""`longattn probe MODEL`: what a checkpoint can retrieve from a text, and from how far; how far a model of pictures or sound looks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..staging import check_new_file
from . import options as flags


def probe(
    context: typer.Context,
    model: Annotated[
        str, flags.model_argument("A checkpoint with a language-model or question-answering head, or a model of pictures or sound")
    ],
    picture: Annotated[
        Path | None,
        typer.Argument(
            metavar="PHOTO",
            help="For a model of pictures a photo (.jpg, .png …), for one of sound a recording (.wav, .flac …) or a folder of them.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="niah_single_1, niah_multikey_2, niah_multikey_3, vt, cwe, fwe (RULER), passkey, listops, mqar, compositional, "
            "forgetting, induction or copy. Several: repeat the option.",
            show_default="niah_single_1, niah_multikey_2, passkey, induction",
        ),
    ] = None,
    lengths: Annotated[str, typer.Option(help="Tokens of a text with its answer, separated by commas; 4K is 4,096.")] = "512,1K,2K,4K",
    depths: Annotated[
        str | None,
        typer.Option(
            help="Where needles lie, from 0 (at the beginning) to 1, separated by commas; for niah, passkey and induction.",
            show_default="anywhere",
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            min=1, max=10_000, help="Texts of each task, length and depth; patches or frames replaced in each photo or recording."
        ),
    ] = 20,
    mode: Annotated[
        str | None,
        typer.Option(
            help="generate: match what is generated. likelihood: compare right answers with wrong ones. span: mark the answer in the text.",
            show_default="by the head: span, likelihood for masked models, else generate",
        ),
    ] = None,
    choices: Annotated[int, typer.Option(min=2, max=10_000, help="Answers compared by likelihood; at least half of them are wrong.")] = 8,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="In place of PHOTO, a folder of photos; eight are read at most.", show_default=False),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="PIXELS", help="Size of the photos: 1024, or height and width, 768x1024.", show_default="the checkpoint's"),
    ] = None,
    audio_seconds: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Duration to which recordings are cut.", show_default="30, or the longest recording"),
    ] = None,
    no_baseline: Annotated[
        bool, typer.Option("--no-baseline", help="Leave out the comparison of a model of pictures or sound with full attention.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the texts, patches or frames.")] = 0,
    dtype: Annotated[str, typer.Option(help="Type of the weights: fp32, bf16 or fp16.")] = "fp32",
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write scores, right answers and what was answered as JSON into this file, which must not exist.", show_default=False
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the scores as a heat map into this file, for example probe.svg, which must not exist.", show_default=False),
    ] = None,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Ask a checkpoint what lies far back in long texts.

    The tasks are RULER's synthetic ones, passkey retrieval, associative recall, induction and copying, at several lengths. A model of
    pictures is given a photo, and one of sound a recording: patches or frames are replaced one at a time, and the change of the features
    is printed by distance (effective receptive field).
    """
    if picture is not None or images is not None:
        for_texts = ("--task", "--lengths", "--depths", "--mode", "--choices", "--plot")
        if picture is not None and images is not None:
            raise typer.BadParameter("is given in place of PHOTO, not with it; leave one of them out.", param_hint="--images")
        flags.refuse_typed(context, for_texts, "is for texts, but a photo or a recording was given; leave it out.")
        settings = {
            "image_size": image_size,
            "audio_seconds": audio_seconds,
            "samples": samples,
            "baseline": not no_baseline,
            "seed": seed,
            "revision": revision,
        }
        _probe_pictures(model, picture or images, dtype=dtype, save=save, as_json=as_json, token=token, **settings)
        return
    flags.refuse_typed(
        context,
        ("--image-size", "--audio-seconds", "--no-baseline"),
        "is for models of pictures and sound; give a photo or a recording after MODEL, or --images FOLDER, or leave it out.",
    )

    from ..conversion.model_loading import quiet_libraries
    from ..conversion.plan_tensors import parse_dtype
    from ..diagnostics.texts import read_depths, read_lengths
    from ..drawing import check_image
    from ..evaluation.probes import probe_model
    from ..evaluation.probes.run import TASKS
    from .plot import draw_probe
    from .show import show_probe
    from .terminal import progress, report_results

    if save is not None:
        check_new_file(save)
    weights = parse_dtype(dtype)
    if plot is not None:
        check_image(plot)
    with quiet_libraries(), progress() as tell:
        report = probe_model(
            model,
            tasks=task or TASKS,
            lengths=read_lengths(lengths.split(",")),
            depths=None if depths is None else read_depths(depths),
            samples=samples,
            mode=mode,
            choices=choices,
            seed=seed,
            dtype=weights,
            revision=revision,
            token=token,
            progress=lambda cell: tell(f"{cell.task}, {cell.length:,} tokens: {cell.score:.0f} %"),
        )
    report_results(report, lambda: show_probe(report), save=save, as_json=as_json, page=plot, draw=lambda file: draw_probe(report, file))


def _probe_pictures(model: str, pictures: Path | None, *, dtype: str, save: Path | None, as_json: bool, **settings: Any) -> None:
    """How far the patches or frames of a model depend on one another."""
    from ..conversion.plan_tensors import parse_dtype
    from ..diagnostics import measure_receptive_field
    from .terminal import progress, report_results, show

    assert pictures is not None
    if save is not None:
        check_new_file(save)
    weights = parse_dtype(dtype)
    with progress() as tell:
        field = measure_receptive_field(model, pictures, dtype=weights, progress=tell, **settings)
    report_results(field, lambda: show(field.report()), save=save, as_json=as_json)
