"""The tasks of `longattn train`, one file each, imported on first use.

The name of a file is the name of the task, and the first line of its docstring is the summary in ``--help``. Each file
has ``ARGUMENTS``, three dataclasses (model, data and training arguments), and ``main``, a function that takes
instances of them. It may have ``EXTRAS``, the names of the package's extras that the task needs.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from ...errors import UsageError, nearest
from ...names import load_module, module_names
from ..recipes import recipe_names, recipe_words


def task_names() -> list[str]:
    return module_names("training.tasks")


def task_summary(name: str) -> str:
    """The first line of the docstring of a task's file. Does not import the file."""
    paths = [Path(folder, f"{name}.py") for folder in __path__]
    source = next(path for path in paths if path.is_file()).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def load_task(name: str) -> ModuleType:
    """The module of a task. Raises :class:`UsageError` if there is no task of this name."""
    if name not in task_names():
        raise UsageError(
            f"There is no task {name!r}; the tasks are {', '.join(task_names())}.{nearest(name, task_names())}"
        )
    return load_module("training.tasks", name)


def task_parser(task: ModuleType, prog: str) -> Any:
    """The parser of a task's command line.

    Args:
        prog: the command in messages and help: "longattn train qa", or "longattn evaluate qa". The defaults for
            evaluate are to train nothing, and to read the split "validation".
    """
    from transformers import HfArgumentParser  # imported here, because listing the tasks does not need it

    class Parser(HfArgumentParser):
        """transformers' parser, with errors as one sentence."""

        def error(self, message: str) -> NoReturn:
            named = re.fullmatch(r"argument (\S+/)?(--\S+): (.*)", message, re.DOTALL)  # argument -m/--model: …
            if named:
                raise UsageError(f"{named[2].replace('_', '-')}: {named[3]}.")
            raise UsageError(f"{message[:1].upper()}{message[1:]}.")

    summary = str(task.__doc__).partition("\n")[0]
    recipes = recipe_names(prog.removeprefix("longattn "))
    parser = Parser(
        task.ARGUMENTS,
        prog=prog,
        description=summary,
        usage="%(prog)s --model MODEL --data DATA … [OPTION …]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        help=f"A recipe: a YAML file with the names below{f', or a ready one: {recipes}' if recipes else ''}.",
    )
    if " evaluate " in prog:
        parser.set_defaults(do_train=False, output_dir=".", split="validation")
    return parser


def parse_task(task: ModuleType, words: list[str], prog: str) -> tuple[Any, Any, Any]:
    """Model, data and training arguments from command-line ``words``.

    If the words name a recipe with ``--config``, its values come first, and the other words override them.
    """
    parser = task_parser(task, prog)
    recipe = parser.parse_known_args(words)[0].config
    if recipe:
        words = [*recipe_words(recipe, f"train {Path(str(task.__file__)).stem}"), *words]
    unknown_words = parser.parse_known_args(words)[1]
    if unknown_words:
        unknown = unknown_words[0]
        if not unknown.startswith("-"):
            raise UsageError(f"Unexpected argument {unknown!r}; values follow their option, as in --model MODEL.")
        option = unknown.partition("=")[0].replace("_", "-")
        options = [
            name
            for action in parser._actions
            for name in action.option_strings
            if "_" not in name and action.dest != "help"
        ]
        raise UsageError(f"There is no option {option}; {prog} --help lists all.{nearest(option, options, 0.6)}")
    model_args, data_args, training_args, *_ = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    return model_args, data_args, training_args
