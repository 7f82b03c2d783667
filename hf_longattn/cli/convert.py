"""`longattn convert SRC DST` and `longattn plan SRC`, with one flag for every setting of :class:`~hf_longattn.ConversionConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..conversion import ConversionConfig
from ..conversion.config import AUTO
from . import options as flags

if TYPE_CHECKING:
    from ..conversion.plan import Chooser

Source = Annotated[
    str,
    typer.Argument(metavar="SRC", callback=flags.check_model, help="A checkpoint folder, or a Hub repository id."),
]


@flags.takes_settings(ConversionConfig)
def convert(
    source: Source,
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make.")],
    config: ConversionConfig,
    recipe: flags.Recipe = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", hidden=True, help="The same as `longattn plan`.")] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO", help="Afterwards push DST to this Hub repository, as `longattn push` does.")
    ] = None,
    private: flags.Private = False,
    as_json: flags.Json = False,
) -> None:
    """Convert a short checkpoint into a long one and check it.

    DST appears complete and verified, or not at all.
    """
    if private and push_to_hub is None:
        raise typer.BadParameter("requires --push-to-hub.", param_hint="--private")
    if dry_run:
        _print_plan(source, destination, config, as_json)
        return

    token = config.token if isinstance(config.token, str) else None
    if push_to_hub is not None:
        from ..loading import check_token

        check_token(push_to_hub, token)
    from ..conversion import convert_checkpoint
    from ..hub import check_login
    from .hub import push_converted
    from .show import conversion_progress, show_report
    from .terminal import print_json

    if push_to_hub is not None:
        check_login(push_to_hub, token, private=private)
    with conversion_progress() as progress:
        report = convert_checkpoint(source, destination, config, choose=_chooser(config), progress=progress)
    result = {"destination": str(report.destination), **report.to_dict()}
    if not as_json:
        show_report(report)
    if push_to_hub is not None:
        result["push"] = push_converted(destination, push_to_hub, private=private, token=token, quiet=as_json)
    if as_json:
        print_json(result)


@flags.takes_settings(ConversionConfig, planned=True)
def plan(source: Source, config: ConversionConfig, recipe: flags.Recipe = None, as_json: flags.Json = False) -> None:
    """Show what a conversion would do.

    Prints tensors, sizes, memory and cost at each length. Reads only the headers of the weights.
    """
    _print_plan(source, None, config, as_json)


def _print_plan(source: str, destination: Path | None, config: ConversionConfig, as_json: bool) -> None:
    from ..conversion import plan_conversion
    from .show import print_plan

    print_plan(plan_conversion(source, destination, config, choose=_chooser(config)), as_json=as_json)


def _chooser(config: ConversionConfig) -> Chooser | None:
    """What ``--mechanism auto`` stands for; imported only where it is needed."""
    if config.mechanism != AUTO:
        return None
    from ..search import choose_mechanisms

    return choose_mechanisms
