"""`--config FILE`: a YAML recipe that gives the other flags their values; what is typed wins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import CheckpointError, LongAttentionError, nearest
from ..reading import read_text

__all__ = ["Recipe", "read_recipe"]


def read_recipe(path: Path, flags: list[str]) -> dict[str, Any]:
    """Return the recipe's values by flag name.

    Raises:
        LongAttentionError: the file is missing, is not a YAML mapping, or names something that is no flag of the command.
    """
    import yaml

    try:
        recipe = yaml.safe_load(read_text(path))
    except (CheckpointError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise LongAttentionError(f"The recipe {path} cannot be read; ready ones are in configs/.") from error
    if not isinstance(recipe, dict):
        raise LongAttentionError(f"The recipe {path} must hold names and values, for example `mechanism: longformer`.")
    values = {str(name).replace("-", "_"): value for name, value in recipe.items()}
    for name in values:
        if name not in flags:
            raise LongAttentionError(f"The recipe {path} sets {name!r}, which is no flag of this command.{nearest(name, flags)}")
    return values


def _apply(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        flags = [parameter.name for parameter in context.command.params if parameter.name]
        context.default_map = {**(context.default_map or {}), **read_recipe(path, flags)}
    return path


Recipe = Annotated[
    Path | None,
    typer.Option("--config", callback=_apply, is_eager=True, help="A YAML recipe with values for these flags; configs/ has ready ones."),
]
