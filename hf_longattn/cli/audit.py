"""`longattn audit MODEL [INPUT]`: what a model, graph or server sees, and how attention spreads.

`longattn diagnose MODEL INPUT` is its former name, until 0.4.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..errors import check_extra
from ..staging import check_new_file, write_text
from . import options as flags


def audit(
    context: typer.Context,
    model: Annotated[str | None, flags.model_argument("A checkpoint, long or not")] = None,
    given: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPUT",
            help="Also measure how attention spreads over this: a UTF-8 text file; for a model of images a photo, for one of sound a "
            "recording or a folder of them.",
            show_default=False,
        ),
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option(help="Audit this ONNX file, or the model.onnx in this folder, against MODEL's config.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Audit a server of MODEL's embeddings: http://…/v1/embeddings, /embed or /v2/embed."),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of tokens, or frames of a sound, that are replaced.",
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
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Lengths of INPUT at which attention is measured: in tokens, for example 512,2K,8K; for recordings in seconds, 15,60.",
            show_default="512,1K,2K,4K,8K tokens or 7.5,15,30 seconds, as far as MODEL and INPUT reach",
        ),
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MECHANISM[:NAME=VALUE,...]",
            help="A mechanism to compare, for example window:window=512. Repeatable.",
            show_default="all of them, with usual options; for a photo, those on a grid",
        ),
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Queries measured at each length, spread over INPUT.")] = 1024,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page into this new file; needs matplotlib.")] = None,
    make_fixtures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Without MODEL: write tiny stock checkpoints with the reach that engines must give.")
    ] = None,
    device: flags.Device = None,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Measure what is seen: how far tokens reach, and how attention spreads.

    Tokens, patches or frames are replaced. The outputs that change are compared with those that the config lets them reach. Exits with 1 if
    they differ.

    With INPUT, the attention of every layer is measured as INPUT grows, with what each mechanism would keep of it. Of a checkpoint without
    mechanisms, only this is measured.
    """
    if (model is None) == (make_fixtures is None):
        raise typer.BadParameter("give either MODEL or --make-fixtures DIR.")
    if model is None:
        assert make_fixtures is not None
        options = [parameter.opts[0] for parameter in context.command.params if parameter.name not in ("make_fixtures", "as_json")]
        flags.refuse_typed(context, [name for name in options if name.startswith("--")], "is for MODEL; leave it out.")
        from ..inspect import fixtures
        from .terminal import print_json, say

        names = fixtures.make_fixtures(make_fixtures)
        written = {"destination": str(make_fixtures), "fixtures": names}
        print_json(written) if as_json else say(f"written: {make_fixtures}", *(f"  {name}" for name in names))
        return
    if url is None:
        flags.refuse_typed(context, ("--timeout",), "requires --url.")
    if given is None:
        flags.refuse_typed(
            context, ("--lengths", "--candidate", "--queries", "--device"), "requires INPUT; give a text, photo or recording."
        )
    elif onnx is not None or url is not None:
        raise typer.BadParameter("measures attention inside MODEL, not in a graph or a server; leave it out.", param_hint="INPUT")
    if html is not None:
        check_new_file(html)
        check_extra("plot", "matplotlib")
    reach_flags = ("--length", "--exhaustive", "--tolerance", "--attn-implementation")
    measures_reach = given is None or _has_mechanisms(model, revision, token)
    if not measures_reach:
        flags.refuse_typed(context, reach_flags, f"is for reach, but {model!r} has no mechanisms; leave it or INPUT out.")

    from ..inspect import audit_reach, diagnose, html_page
    from ..inspect.attention import is_text
    from ..inspect.report import audit_report
    from ..inspect.texts import DURATIONS, read_lengths, read_numbers
    from .terminal import print_json, progress, say, show

    reach = found = None
    if measures_reach:
        reach = audit_reach(**flags.arguments(audit_reach, locals()))
    if given is not None:
        asked: list[float] | list[int] | None = None
        if lengths is not None:
            asked = read_lengths(lengths.split(",")) if is_text(given) else read_numbers(lengths, DURATIONS)
        with progress() as tell:
            found = diagnose(**flags.arguments(diagnose, locals(), text=given, lengths=asked, candidates=candidate, progress=tell))
    report = audit_report(reach, found)
    if html is not None:
        write_text(html, html_page(report), overwrite=False)
    if as_json:
        print_json({**(reach.to_dict() if reach else {}), **({"attention": found.to_dict()} if found else {})})
    else:
        show(report)
        say("" if html is None else f"written: {html}")
    if reach is not None and not reach.agrees:
        raise typer.Exit(1)


def _has_mechanisms(model: str, revision: str | None, token: str | None) -> bool:
    from ..conversion.sources.base import open_source
    from ..reading import is_long

    return is_long(open_source(model, headers_only=True, revision=revision, token=token).config)


def diagnose(context: typer.Context) -> None:
    """The former name of `longattn audit MODEL INPUT`, until 0.4."""
    from .terminal import say

    words = ["--lengths" if word == "--audio-seconds" else word for word in context.args]
    say(f"`longattn diagnose` is part of `longattn audit` now; type: {shlex.join(['longattn', 'audit', *words])}", stderr=True)
    assert context.parent is not None
    context.parent.command.main(["audit", *words], prog_name="longattn")
