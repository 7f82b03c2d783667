"""hf_longattn/declarations.json: what the command line knows before it imports torch, from the imported classes; for `update_docs`."""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import json
import re
import typing
from functools import cache
from typing import Any

import transformers
from packaging.version import Version

from hf_longattn import list_mechanisms, mechanism_info
from hf_longattn.catalogue import Listed
from hf_longattn.declarations import LIBRARY, declared
from hf_longattn.errors import CheckpointError
from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms import mechanism_class
from hf_longattn.modeling.family.definition import class_names, module_name
from hf_longattn.naming import module_path
from hf_longattn.tasks import load_task, task_names
from scripts.dev.tools.derived import derive, text_model_types

LIGHT = ("builtins", "hf_longattn.options", "hf_longattn.training.args")
"""Modules that do not import torch, so that their classes need not be written down."""


def declarations() -> str:
    """The text of the file."""
    options = {name: mechanism_class(name).options_type for name in list_mechanisms()}
    tasks = {name: load_task(name) for name in task_names()}
    used = [*options.values(), *(kind for task in tasks.values() for kind in task.arguments)]
    classes = {full_name(base): base for kind in used for base in kind.__mro__ if base.__module__ not in LIGHT}
    entries: dict[str, dict[str, Any]] = {
        "mechanisms": {name: {"options": full_name(kind), **listed(name)} for name, kind in options.items()},
        "tasks": {
            name: {"arguments": [full_name(kind) for kind in task.arguments], "evaluation": task.evaluation} for name, task in tasks.items()
        },
        "families": {name: FAMILIES[name].classes for name in sorted(FAMILIES) if has_file(name) and FAMILIES[name].classes},
        **derived_families(),
        "classes": {name: described(kind) for name, kind in sorted(classes.items())},
    }
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


@cache
def derived_families() -> dict[str, dict[str, Any]]:
    """The facts of every family without a file, why the other models of texts have none, and the public names of all families.

    They are those of the newest version of transformers that wrote the file.
    """
    sections = ("transformers", "derived", "refused", "exports")
    if Version(declared()["transformers"].get("version", "0")) > Version(transformers.__version__):
        return {name: declared()[name] for name in sections}
    derived: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for model_type in text_model_types():
        if not has_file(model_type):
            try:
                derived[model_type] = derive(model_type)
            except CheckpointError as error:
                refused[model_type] = str(error)
    exports = {base: FAMILIES[base].exports for base in FAMILIES if has_file(base)}
    exports |= {base: class_names(base, tuple(facts.get("classes", ()))) for base, facts in derived.items()}
    exports = dict(sorted(exports.items()))
    return dict(zip(sections, ({"version": transformers.__version__}, derived, refused, exports), strict=True))


def has_file(base: str) -> bool:
    """Whether a family is a file, rather than derived."""
    return module_path("families", module_name(base)) is not None


def listed(name: str) -> dict[str, Any]:
    """What the list of mechanisms says of one besides its name."""
    info = mechanism_info(name)
    return {field: getattr(info, field) for field in Listed._fields if field != "name"}


def full_name(kind: type[Any]) -> str:
    """``"module.Name"``."""
    return f"{kind.__module__}.{kind.__name__}"


def described(kind: type[Any]) -> dict[str, Any]:
    """The bases of a class, and what it adds to them.

    The fields of transformers' classes depend on its version, and are left out.
    """
    entry: dict[str, Any] = {"bases": [full_name(base) for base in kind.__bases__ if base is not object]}
    if full_name(kind).startswith(LIBRARY):
        return entry
    own, hints = inspect.get_annotations(kind), typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    entry["frozen"] = kind.__dataclass_params__.frozen
    entry["constants"] = {name: vars(kind)[name] for name in own if name not in fields and name in vars(kind)}
    entry["fields"] = {name: field_of(fields[name], hints[name]) for name in own if name in fields}
    return entry


def field_of(field: dataclasses.Field[Any], hint: Any) -> tuple[str, dict[str, Any]]:
    """A field's type, as code that needs no import, and the arguments of ``dataclasses.field``.

    A type that needs an import becomes "object", without its default: its values are checked later.
    """
    kind = inspect.formatannotation(hint)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if not {*re.findall(r"\w+", kind)} <= {*dir(builtins)}:
        kind, default = "object", None
    return kind, {"default": default, "metadata": dict(field.metadata), **({} if field.init else {"init": False})}
