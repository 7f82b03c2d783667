"""`longattn probe MODEL`: what a checkpoint can retrieve from a text, and from how far."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..staging import check_new_file, write_text
from . import options as flags

__all__ = ["probe"]


def probe(
    model: Annotated[str, flags.model_argument("A checkpoint with a language-model or question-answering head")],
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
    samples: Annotated[int, typer.Option(min=1, help="Texts of each task, length and depth.")] = 20,
    mode: Annotated[
        str | None,
        typer.Option(
            help="generate: match what is generated. likelihood: compare right answers with wrong ones. span: mark the answer in the text.",
            show_default="by the head: span, likelihood for masked models, else generate",
        ),
    ] = None,
    choices: Annotated[int, typer.Option(min=2, help="Answers compared by likelihood; half of them at least are wrong.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the texts.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the weights: fp32, bf16 or fp16.")] = "fp32",
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

    RULER's synthetic tasks, passkey retrieval, associative recall, induction and copying, at several lengths.
    """
    import json

    from ..conversion.model_loading import quiet_libraries
    from ..conversion.plan_tensors import parse_dtype
    from ..diagnostics.texts import read_depths, read_lengths
    from ..evaluation.probes import probe_model
    from ..evaluation.probes.run import TASKS
    from .show import probe_progress, show_probe
    from .terminal import print_json, say

    for path in (save, plot):
        if path is not None:
            check_new_file(path)
    weights = parse_dtype(dtype)
    if plot is not None:
        from .plot import check_image

        check_image(plot)
    with quiet_libraries(), probe_progress(as_json) as progress:
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
            progress=progress,
        )
    if save is not None:
        write_text(save, json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n", overwrite=False)
    if plot is not None:
        from .plot import draw_probe

        draw_probe(report, plot)
    if as_json:
        print_json(report.to_dict())
        return
    show_probe(report)
    for path in (save, plot):
        if path is not None:
            say(f"written: {path}")
