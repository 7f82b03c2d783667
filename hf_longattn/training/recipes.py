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
    """A recipe in the package.

    Attributes:
        name: the name to give to ``--config``.
        title: the first line of the file's comment.
        command: the command that reads the recipe: "convert", "accelerate launch", or "train TASK".
    """

    name: str
    path: Path
    title: str
    command: str


def ready_recipes() -> dict[str, Recipe]:
    """The recipes in the package by name."""
    recipes = {}
    for path in sorted(CONFIGS.rglob("*.yaml")):
        text = read_text(path)
        command = "convert" if path.parent == CONFIGS else "accelerate launch"
        if task := re.search(rf"train (\w+) --config {path.stem}$", text, re.MULTILINE):
            command = f"train {task[1]}"
        recipes[path.stem] = Recipe(path.stem, path, text.splitlines()[0].removeprefix("# "), command)
    return recipes


def recipe_names(command: str = "") -> str:
    """The names of the recipes for a command, separated by commas, for a help text or a message.

    Without a command, these are the recipes of all commands except ``accelerate launch``.
    """
    recipes = ready_recipes().values()
    if command:
        names = [recipe.name for recipe in recipes if recipe.command == command]
    else:
        names = [recipe.name for recipe in recipes if recipe.command != "accelerate launch"]
    return ", ".join(names)


def read_recipe(
    recipe: str | Path, names: Iterable[str] | None = None, command: str = "", loader: str = "SafeLoader"
) -> dict[str, Any]:
    """The values of a recipe by the name of the setting. Dashes in names become underscores.

    Args:
        recipe: a YAML file, or a name in :func:`ready_recipes`.
        names: permitted settings; ``None``: any.
        command: the command to which a recipe of the package must belong; "" = any.
        loader: name of PyYAML's loader. "BaseLoader" leaves all values as they are written.

    Raises:
        LongAttentionError: the recipe does not exist, cannot be read, belongs to another command, or has a setting
            that is not in ``names``.
    """
    import yaml

    # A name, or a file
    path, ready = Path(recipe), ready_recipes()
    if not path.suffix and not path.exists():
        name = str(recipe)
        if name not in ready:
            raise LongAttentionError(
                f"There is no recipe {name!r}; give a YAML file, or one of {recipe_names()}.{nearest(name, ready)}"
            )
        if command not in ("", ready[name].command):
            raise LongAttentionError(
                f"The recipe {name!r} is for longattn {ready[name].command}; give another one, or a YAML file."
            )
        path = ready[name].path

    # The values in the file
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
    permitted = list(settings if names is None else names)
    for name in settings:
        if name not in permitted:
            raise LongAttentionError(
                f"The recipe {path} sets {name!r}, which is not a setting of this command.{nearest(name, permitted)}"
            )
    return settings


def recipe_words(recipe: str, command: str = "") -> list[str]:
    """The values of a recipe as command-line words, spelled as in the file (``no``, ``1e-5``).

    Settings without a value are left out. A dictionary becomes JSON.
    """
    values = read_recipe(recipe, command=command)
    spellings = read_recipe(recipe, command=command, loader="BaseLoader")
    words = []
    for name, value in values.items():
        if value is None:
            continue
        spelling = spellings[name]
        if isinstance(value, dict):
            spelling = json.dumps(value)
        if not isinstance(spelling, list):
            spelling = [spelling]
        words += [f"--{name}", *spelling]
    return words
