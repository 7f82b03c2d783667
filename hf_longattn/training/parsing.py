"""The command line of a task: a parser of its three dataclasses, its help, and recipes with the same names."""

from __future__ import annotations

import argparse
import inspect
import logging
import re
from collections.abc import Collection
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args, get_origin

from transformers.hf_argparser import HfArgumentParser, string_to_bool

from hf_longattn.errors import OptionError, UsageError, flag, nearest, sentence_case
from hf_longattn.names import LOGGER
from hf_longattn.training.evaluation import training_options
from hf_longattn.training.recipes import read_recipe, recipe_names
from hf_longattn.training.task import load_task, task_names

if TYPE_CHECKING:
    from hf_longattn.training.args import DataArguments, ModelArguments
    from hf_longattn.training.training_args import LongTrainingArguments

logger = logging.getLogger(LOGGER)
Model = TypeVar("Model", bound="ModelArguments")
Data = TypeVar("Data", bound="DataArguments")
Training = TypeVar("Training", bound="LongTrainingArguments")
KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a string", string_to_bool: "true or false"}
"""Type of an option -> its name in messages."""


def build_arguments(kinds: tuple[type[Model], type[Data], type[Training]], **values: Any) -> tuple[Model, Data, Training]:
    """Model, data and training arguments from values by name.

    Raises:
        TypeError: a name that none of the three has.
    """
    parts: list[dict[str, Any]] = []
    for kind in kinds:
        names = {field.name for field in fields(kind) if field.init}
        parts.append({name: values.pop(name) for name in list(values) if name in names})
    if values:
        raise TypeError(f"{', '.join(kind.__name__ for kind in kinds)} have no {', '.join(values)}")
    return kinds[0](**parts[0]), kinds[1](**parts[1]), kinds[2](**parts[2])


class TaskParser(HfArgumentParser):
    """transformers' parser with one-sentence errors."""

    typed: Collection[str] = ()
    """The words of the command line, with hyphens, and without values after an equals sign."""
    training_only: Collection[str] = ()
    """Options of training, which an evaluation refuses."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse.

        Raises:
            UsageError: always.
        """
        named = re.fullmatch(r"argument (--\S+): (.*)", message, re.DOTALL)
        if named is None:
            raise UsageError(f"{sentence_case(message)}.")
        flags = named[1].split("/")
        raise UsageError(f"{next((option for option in flags if option in self.typed), flags[0])}: {named[2]}.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, which calls :meth:`error`."""
        self.typed = {word.partition("=")[0].replace("_", "-") for word in args or ()}
        return super().parse_known_args(args, namespace)

    def parse(self, line: list[str]) -> dict[str, Any]:
        """The values of a command line by the names of their fields.

        Raises:
            UsageError: an unknown option, with the nearest known one or the task that has it; or a value of the wrong kind.
        """
        known, unknown = self.parse_known_args(line)
        wrong = next((word.partition("=")[0].replace("_", "-") for word in unknown if word.startswith("-")), None)
        if wrong is not None:
            if wrong.removeprefix("--").removeprefix("no-").replace("-", "_") in self.training_only:
                raise UsageError(f"{wrong} is an option of training, and nothing is trained here; leave it out.")
            choices = [option for action in self._actions for option in action.option_strings if action.dest != "help"]
            tasks = f" {found};" if (found := tasks_with(wrong)) else ""
            raise UsageError(f"There is no option {wrong};{tasks} {self.prog} --help lists all.{nearest(wrong, choices, 0.6)}")
        if unknown:
            raise UsageError(f"Unexpected argument {unknown[0]!r}; values follow their option, as in --model MODEL.")
        return vars(known)


def task_parser(kinds: tuple[type[Any], ...], description: str, prog: str | None = None) -> TaskParser:
    """The parser of a task's command line."""
    source = next((f" --{field.name} {field.name.upper()}" for field in fields(kinds[1]) if field.name in ("data", "text", "tasks")), "")
    needed = "".join(f" {flag(name)} {name.upper()}" for kind in kinds for name in getattr(kind, "required", ()))
    is_evaluation = kinds[2].only_scores
    usage = f"%(prog)s --model MODEL{source}{needed} {'[--output FOLDER]' if is_evaluation else '--output FOLDER'} [OPTION ...]"
    parser = TaskParser(kinds, description=description, usage=usage, prog=prog, allow_abbrev=False)
    command = (prog or "").removeprefix("longattn ")
    recipes = recipe_names(command)
    parser.add_argument("--config", help=f"A recipe: a YAML file with the names below{f', or a ready one ({recipes})' if recipes else ''}.")
    refused = getattr(kinds[2], "without_effect", ())
    for action in parser._actions:
        action.option_strings = list(dict.fromkeys(option.replace("_", "-") for option in action.option_strings))
        parser._option_string_actions |= {f"--{name[2:].replace('-', '_')}": action for name in action.option_strings if name[:2] == "--"}
        if action.dest in refused:
            action.help = argparse.SUPPRESS
        elif action.dest == "help":
            action.help = "Show the options, also those of TrainingArguments, and exit."
        elif action.option_strings[0].startswith("--no-"):  # HfArgumentParser copies the help of the switch
            action.help = f"Turn {flag(action.dest)} off, which is on by default."
        elif action.type is string_to_bool and action.nargs is None:  # a switch with a computed default: without a value it is on
            action.nargs, action.const = "?", True
    library = (base for base in kinds[2].__mro__ if base.__module__.startswith("transformers."))
    inherited = [name for base in library for name in inspect.get_annotations(base)]
    if is_evaluation:
        parser.training_only = {name for kind in kinds for name in training_options(kind)}
    for group in parser._action_groups:
        group._group_actions.sort(key=lambda action: action.dest in inherited)  # the help lists ours first
    return parser


def tasks_with(option: str) -> str:
    """ "`longattn train distill` has it", of the tasks that have an option, "--temperature" or "temperature"; "" without any."""
    name = option.lstrip("-").replace("-", "_")
    tasks = [task for task in task_names() if any(name == f.name for kind in load_task(task).ARGUMENTS for f in fields(kind) if f.init)]
    commands = ", ".join(f"`longattn train {task}`" for task in tasks)
    return f"{commands} {'has' if len(tasks) == 1 else 'have'} it" if tasks else ""


def parse_arguments(
    kinds: tuple[type[Model], type[Data], type[Training]], arguments: list[str], description: str, prog: str | None = None
) -> tuple[Model, Data, Training]:
    """Return the arguments of a recipe (``--config``), overridden by the command line.

    Raises:
        LongAttentionError: the recipe does not exist or has an unknown name, or a value is refused.
    """
    command, parser = (prog or "").removeprefix("longattn "), task_parser(kinds, description, prog)
    defaults = parser.parse([])  # HfArgumentParser's defaults differ from TrainingArguments' for `debug` and another option
    known, _ = parser.parse_known_args(arguments)
    if known.config:
        parser.set_defaults(**_defaults(parser, known.config, command))
    values = parser.parse(arguments)
    values.pop("config")
    built = build_arguments(kinds, **{name: value for name, value in values.items() if value != defaults[name]})
    if "--bf16" in parser.typed and values["bf16"] and built[2].use_cpu and not built[2].bf16:
        logger.warning("--bf16 has no effect: this processor computes no bf16 (it needs avx512_bf16 or AMX), so that fp32 is used.")
    return built


def _defaults(parser: HfArgumentParser, recipe: str, command: str) -> dict[str, Any]:
    """A recipe's values by field names. A recipe may use every name of the command line, and a single value for a list."""
    settings = [action for action in parser._actions if action.dest not in ("help", "config")]
    names = {option.strip("-").replace("-", "_"): action for action in settings for option in action.option_strings}
    options = {name: action for name, action in names.items() if not name.startswith("no_")}
    values: dict[str, Any] = {}
    for name, value in read_recipe(recipe, options).items():
        action = options[name]
        if action.dest in values:
            raise OptionError(f"The recipe {recipe} sets {action.dest!r} twice, under two names; leave one of them out.")
        try:
            values[action.dest] = _typed(action, value)
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            kind = KINDS.get(action.type, f"a {getattr(action.type, '__name__', 'string')}")
            expected = f"one of {', '.join(map(str, action.choices))}" if action.choices else kind
            raise OptionError(f"The recipe {recipe} sets {name!r} to {value!r}; it must be {expected}.") from error
    return values


def _typed(action: argparse.Action, value: Any) -> Any:
    """A recipe's value in the type that the command line gives it, since argparse converts texts only.

    Raises:
        TypeError, ValueError, argparse.ArgumentTypeError: the value has another type.
    """
    if value is None and action.default is None:
        return None
    if action.nargs == "+":
        return [_single(action, item) for item in (value if isinstance(value, list) else [value])]
    if isinstance(value, (dict, list)):  # lr_scheduler_kwargs, fsdp_config, report_to …, which are JSON texts on the command line
        from transformers import TrainingArguments

        kinds = get_args(TrainingArguments.__annotations__.get(action.dest))
        if not any((get_origin(kind) or kind) is type(value) for kind in kinds):
            raise TypeError
        return value
    return _single(action, value)


def _single(action: argparse.Action, value: Any) -> Any:
    if value is False and action.type is not string_to_bool:
        value = "no"  # as in `eval_strategy: no`, which YAML reads as false
    if value is None or isinstance(value, (dict, list)) or (value is True and action.type is str):
        raise TypeError
    typed = action.type(str(value)) if callable(action.type) else value
    if action.choices and typed not in action.choices:
        raise ValueError
    return value if typed == value and not isinstance(typed, bool) else typed
