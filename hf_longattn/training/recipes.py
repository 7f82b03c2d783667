"""Recipes: YAML files with the values of a command's settings, ready ones by name.

``configs/`` holds conversions, ``configs/recipes/`` trainings with the values and the scores that a paper published, and
``configs/accelerate/`` the settings of ``accelerate launch``. The comment at the head of a training's recipe has a title and then
entries, ``# Name: text`` (:data:`ENTRIES`), with further lines indented:

    # TriviaQA with Longformer-base
    # Paper: Beltagy et al. 2020, Longformer, tables 7 and 14
    # Score: F1 75.2 on the development set
    # Commands:
    #   longattn convert allenai/longformer-base-4096 longformer-base
    #   longattn train qa --config longformer-triviaqa
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, LongAttentionError, nearest
from ..files import read_text

PACKAGE = Path(__file__).resolve().parent.parent
CONFIGS = next((folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir()), PACKAGE / "configs")
"""Folder of the recipes: inside the package in a wheel, next to it in a checkout (also with ``pip install -e``)."""
TRAINED = re.compile(r"(?:longattn|-m hf_longattn) train (\w+) ")
"""The task in a command."""
ENTRIES = ("Paper", "Score", "Base", "Hardware", "Differs", "Commands")
"""The entries of the comment of a training's recipe: the source of its values, what was published, the checkpoint that it starts from, the
authors' hardware, where the recipe differs from the paper or the paper gives no value, and what to type."""


@dataclass(frozen=True)
class Recipe:
    """A recipe that comes with the package."""

    path: Path

    @property
    def name(self) -> str:
        """The name that ``--config`` takes."""
        return self.path.stem

    @cached_property
    def entries(self) -> dict[str, str]:
        """Entry in lower case -> text, from the comment at the head: "title" and the :data:`ENTRIES` in it. Commands are one per line."""
        header = takewhile(lambda line: line.startswith("#"), read_text(self.path).splitlines())
        title, *further = re.split(rf"^# ({'|'.join(ENTRIES)}):", "\n".join(header), flags=re.MULTILINE)
        texts = {"title": title, **{name.lower(): text for name, text in zip(further[::2], further[1::2], strict=True)}}
        lines = {entry: [line.lstrip("#").strip() for line in text.splitlines()] for entry, text in texts.items()}
        return {entry: ("\n" if entry == "commands" else " ").join(filter(None, texts)) for entry, texts in lines.items()}

    @cached_property
    def command(self) -> str:
        """The command that takes the settings: "convert", "train qa" …, "accelerate launch"."""
        if self.path.parent != CONFIGS / "recipes":
            return "convert" if self.path.parent == CONFIGS else "accelerate launch"
        task = TRAINED.search(self.entries.get("commands", ""))
        return f"train {task[1]}" if task else "train"


def ready_recipes() -> dict[str, Recipe]:
    """The recipes that come with the package, by name."""
    return {path.stem: Recipe(path) for path in sorted(CONFIGS.rglob("*.yaml"))}


def recipe_names(command: str = "") -> str:
    """The ready recipes of a command, for a help text or a message. Without a command, all but those of ``accelerate launch``."""
    commands = {name: recipe.command for name, recipe in ready_recipes().items()}
    return ", ".join(name for name, other in commands.items() if other == command or (not command and other != "accelerate launch"))


def recipe_words(recipe: str) -> list[str]:
    """The values of a recipe as words of a command line: a YAML file, or one of :func:`ready_recipes` by name.

    Raises:
        LongAttentionError: it does not exist, or is not a YAML mapping.
    """
    import yaml

    path = Path(recipe) if Path(recipe).suffix or recipe not in ready_recipes() else ready_recipes()[recipe].path
    try:
        text = read_text(path)
        values, written = yaml.safe_load(text), yaml.load(text, yaml.BaseLoader)  # a `no` or a 1e-5 as it is written
        words = []
        for name, value in written.items():
            cells = value if isinstance(value, list) else [json.dumps(values[name]) if isinstance(value, dict) else value]
            words += [f"--{name}", *map(str, cells)]
    except (CheckpointError, yaml.YAMLError, RecursionError, ValueError, AttributeError) as error:
        raise LongAttentionError(
            f"The recipe {recipe!r} cannot be read; give a YAML file with names and values, for example `learning_rate: 3.0e-5`, or one "
            f"of {recipe_names()}.{nearest(recipe, ready_recipes())}"
        ) from error
    return words


def read_recipe(
    recipe: str | Path, names: Iterable[str] | None = None, command: str = "", *, elsewhere: Callable[[str], str] = lambda name: ""
) -> dict[str, Any]:
    """The values of a YAML recipe: a file, or one of :func:`ready_recipes` by name. Dashes in names become underscores.

    Args:
        recipe: the path or the name.
        names: the settings that it may have; ``None``: any.
        command: the command that asks, "convert" or "train qa"; "": any.
        elsewhere: names the commands that have a setting which this one lacks; "": none.

    Raises:
        LongAttentionError: the recipe does not exist, is not a YAML mapping, belongs to another command, or contains another name.
    """
    import yaml

    path, name, ready = Path(recipe), str(recipe), ready_recipes()
    if not path.suffix and not path.exists():
        if name not in ready:
            raise LongAttentionError(
                f"There is no recipe {name!r}; give a YAML file, or one of {recipe_names(command)}.{nearest(name, ready)}"
            )
        path, taker = ready[name].path, ready[name].command
        if command not in ("", taker):
            raise LongAttentionError(f"The recipe {name!r} is for `{taker}`, not for `{command}`; `longattn recipes {name}` prints it.")
    try:
        values = yaml.safe_load(read_text(path))
    except (CheckpointError, yaml.YAMLError, RecursionError, ValueError) as error:
        failure = "cannot be read" if path.exists() else "does not exist"
        raise LongAttentionError(f"The recipe {path} {failure}; give a YAML file, or one of {recipe_names(command)}.") from error
    if not isinstance(values, dict):
        example = "learning_rate: 3.0e-5" if command.startswith("train") else "mechanism: longformer"
        raise LongAttentionError(f"The recipe {path} must contain names and values, for example `{example}`.")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    known = list(values if names is None else names)
    for name in values:
        if name not in known:
            others = "; ".join(filter(None, ("which is not a setting of this command", elsewhere(name))))
            raise LongAttentionError(f"The recipe {path} sets {name!r}, {others}.{nearest(name, known)}")
    return values
