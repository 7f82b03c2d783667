"""`longattn probe MODEL`: what a checkpoint can retrieve from a text, and from how far."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..staging import check_new_file, write_text
from . import options as flags

SHARES = "shares of the text from 0 to 1; give for example --depths 0.1,0.5,0.9"


def probe(
    model: Annotated[str, flags.model_argument("A checkpoint with a language-model or question-answering head")],
    photo: Annotated[Path | None, typer.Argument(metavar="PHOTO", hidden=True)] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="niah_single_1 to 3, niah_multikey_1 to 3, niah_multivalue, niah_multiquery, vt, cwe, fwe (RULER), json_kv (HELMET), "
            "infbench_passkey, infbench_number_string, infbench_kv_retrieval, infbench_math_find, infbench_math_calc, infbench_code_run "
            "(∞Bench), passkey, listops, mqar, compositional, forgetting, induction or copy. Several: repeat the option.",
            show_default="niah_single_1, niah_multikey_2, passkey, induction",
        ),
    ] = None,
    lengths: Annotated[str, typer.Option(help="Tokens of a text with its answer, separated by commas; 4K is 4,096.")] = "512,1K,2K,4K",
    depths: Annotated[
        str | None,
        typer.Option(
            help="Where needles lie, from 0 (at the beginning) to 1, separated by commas; for induction and tasks with one needle.",
            show_default="anywhere",
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(min=1, max=10_000, help="Texts of each task, length and depth."),
    ] = 20,
    mode: Annotated[
        str | None,
        typer.Option(
            help="generate: match what is generated. likelihood: compare right answers with wrong ones. span: mark the answer in the text.",
            show_default="by the head: span, likelihood for masked models, else generate",
        ),
    ] = None,
    choices: Annotated[int, typer.Option(min=2, max=10_000, help="Answers compared by likelihood; at least half of them are wrong.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the texts.")] = 0,
    essay: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text file in which niah hides needles in essays.", show_default="English text of Python's manual"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights: fp32, bf16 or fp16.")] = "fp32",
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write scores, right answers and what was answered as JSON into this file, which must not exist.", show_default=False
        ),
    ] = None,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Ask a checkpoint what lies far back in long texts.

    The tasks are RULER's, HELMET's and ∞Bench's synthetic ones, associative recall, induction and copying, at several lengths.
    """
    if photo is not None:
        raise typer.BadParameter("probe asks models of texts; type longattn audit MODEL PHOTO", param_hint="PHOTO")

    from ..conversion.model_loading import quiet_libraries
    from ..conversion.plan_tensors import parse_dtype
    from ..evaluation.probes import probe_model
    from ..evaluation.probes.run import TASKS
    from ..inspect.texts import read_lengths, read_numbers
    from .show import show_probe
    from .terminal import print_json, progress, say

    if save is not None:
        check_new_file(save)
    weights = parse_dtype(dtype)
    with quiet_libraries(), progress() as tell:
        read = {"lengths": read_lengths(lengths.split(",")), "depths": None if depths is None else read_numbers(depths, SHARES)}
        note = lambda cell: tell(f"{cell.task}, {cell.length:,} tokens: {cell.score:.0f} %")  # noqa: E731
        report = probe_model(**flags.arguments(probe_model, locals(), tasks=task or TASKS, dtype=weights, progress=note, **read))
    numbers = report.to_dict()
    if save is not None:
        write_text(save, json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", overwrite=False)
    if as_json:
        print_json(numbers)
    else:
        show_probe(report)
        if save is not None:
            say(f"written: {save}")
