"""`longattn mechanisms [NAME]`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from . import options as flags

__all__ = ["mechanisms"]


def mechanisms(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One mechanism in full.", show_default=False)] = None,
    as_json: flags.Json = False,
) -> None:
    """List the attention mechanisms, or describe one with its options."""
    from ..mechanisms import list_mechanisms, mechanism_info
    from .show import print_json, show_mechanism, show_mechanisms

    if name is not None:
        info = mechanism_info(name)
        print_json(asdict(info)) if as_json else show_mechanism(info)
        return
    infos = [mechanism_info(one) for one in list_mechanisms()]
    print_json({"mechanisms": [asdict(info) for info in infos]}) if as_json else show_mechanisms(infos)
