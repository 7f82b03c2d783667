"""Settings of a training run as a dataclass: from a recipe in YAML, overridden by the command line."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from transformers import HfArgumentParser

from hf_longattn.errors import OptionError, nearest

Settings = TypeVar("Settings")


def setting(default: Any, text: str) -> Any:
    """A field with its help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def parse_settings(kind: type[Settings], arguments: list[str], description: str) -> Settings:
    """Return the settings of a recipe (``--config``) overridden by the command line.

    Raises:
        OptionError: the recipe does not exist or holds a name that is no setting.
    """
    parser = HfArgumentParser(kind, description=description)
    parser.add_argument("--config", type=Path, help="Recipe in YAML with the names below.")
    known, _ = parser.parse_known_args(arguments)
    if known.config:
        parser.set_defaults(**read_recipe(known.config, kind))
    values = vars(parser.parse_args(arguments))
    values.pop("config")
    return kind(**values)


def read_recipe(path: Path, kind: type[Any]) -> dict[str, Any]:
    """Read a YAML recipe; unknown names are refused."""
    if not path.is_file():
        raise OptionError(f"recipe {str(path)!r} does not exist; the ready ones are in configs/")
    recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    names = kind.__dataclass_fields__
    for name in recipe:
        if name not in names:
            raise OptionError(f"{path}: unknown setting {name!r}.{nearest(name, names)} --help lists all of them")
    return recipe
