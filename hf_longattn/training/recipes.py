"""Recipes: YAML files with values for a command's settings. Recipes in the package can be used by name.

``configs/`` holds conversions, ``configs/recipes/`` trainings with the values that a paper published, and
``configs/accelerate/`` the settings of ``accelerate launch``. Each file begins with a comment: title, source of the
values, and the command to type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, LongAttentionError, nearest
from ..files import read_text

PACKAGE = Path(__file__).resolve().parent.parent
CONFIGS = next(
    (folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir()), PACKAGE / "configs"
)
"""Folder of the recipes: inside the package in a wheel, next to it in a checkout (also with ``pip install -e``)."""


@dataclass(frozen=True)
class Recipe:
    """A recipe in the package. name: value for ``--config``. command: "convert", "train qa" …, "accelerate launch"."""

    name: str
    path: Path
    title: str
    command: str


def ready_recipes() -> dict[str, Recipe]:
    recipes = {}
    for path in sorted(CONFIGS.rglob("*.yaml")):
        text = read_text(path)
        command = "convert" if path.parent == CONFIGS else "accelerate launch"
        if task := re.search(rf"train (\w+) --config {path.stem}$", text, re.MULTILINE):
            command = f"train {task[1]}"
        recipes[path.stem] = Recipe(path.stem, path, text.splitlines()[0].removeprefix("# "), command)
    return recipes


def recipe_names(command: str = "") -> str:
    """The ready recipes of a command, for a help text or a message. Without a command, all but those of
    ``accelerate launch``."""
    recipes = ready_recipes().values()
    return ", ".join(
        each.name
        for each in recipes
        if each.command == command or (not command and each.command != "accelerate launch")
    )


def read_recipe(
    recipe: str | Path, names: Iterable[str] | None = None, command: str = "", loader: str = "SafeLoader"
) -> dict[str, Any]:
    """The values of a recipe: a YAML file, or one of :func:`ready_recipes` by name. Dashes in names become
    underscores.

    Args:
        names: permitted settings; ``None``: any.
        command: the command to which a ready recipe must belong; "" = any.
    """
    import yaml

    path, ready = Path(recipe), ready_recipes()
    if not path.suffix and not path.exists():
        if (name := str(recipe)) not in ready:
            raise LongAttentionError(
                f"There is no recipe {name!r}; give a YAML file, or one of {recipe_names()}.{nearest(name, ready)}"
            )
        if command not in ("", ready[name].command):
            raise LongAttentionError(
                f"The recipe {name!r} is for longattn {ready[name].command}; give another one, or a YAML file."
            )
        path = ready[name].path
    try:
        values = yaml.load(read_text(path), getattr(yaml, loader))
    except (CheckpointError, yaml.YAMLError, RecursionError, ValueError) as error:
        failure = "cannot be read" if path.exists() else "does not exist"
        raise LongAttentionError(
            f"The recipe {path} {failure}; give a YAML file, or one of {recipe_names()}."
        ) from error
    if not isinstance(values, dict):
        raise LongAttentionError(f"The recipe {path} must contain names and values, for example `max_length: 4096`.")
    settings = {str(name).replace("-", "_"): value for name, value in values.items()}
    known = list(settings if names is None else names)
    if wrong := next((name for name in settings if name not in known), None):
        raise LongAttentionError(
            f"The recipe {path} sets {wrong!r}, which is not a setting of this command.{nearest(wrong, known)}"
        )
    return settings


def recipe_words(recipe: str, command: str = "") -> list[str]:
    """The values of a recipe as command-line words, spelled as in the file (``no``, ``1e-5``)."""
    values, written = (read_recipe(recipe, command=command, loader=loader) for loader in ("SafeLoader", "BaseLoader"))
    words = []
    for name, value in values.items():
        if value is not None:
            text = json.dumps(value) if isinstance(value, dict) else written[name]
            words += [f"--{name}", *(text if isinstance(text, list) else [text])]
    return words
