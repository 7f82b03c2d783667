"""Put the code of a model beside its weights, so that it loads where this package is not installed.

    bundle_remote_code("my-long-bert")
    AutoModel.from_pretrained("my-long-bert", trust_remote_code=True)     # without hf_longattn

The files are those of this package that the model needs, each with its imports made flat (:mod:`hf_longattn.hub.sources`) under a
header that says what it was made from. ``config.json`` names them under ``auto_map``, as transformers expects.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..configuration import LongAttentionConfig
from ..errors import CheckpointError, RemoteCodeError
from ..families import FAMILIES, Family
from ..families.places import CROSS_MECHANISM
from ..families.registry import family_of
from ..mechanisms import check_options, mechanism_class
from .card import read_config
from .provenance import provenance
from .sources import PACKAGE, Module, closure, flat_name, package_module

__all__ = ["BUNDLED", "bundle_remote_code", "check_remote_code"]

BUNDLED = ("longattn_*.py", "modeling_long_*.py")
"""Patterns of the files that a bundle consists of."""
DISCOVERY = f"{PACKAGE}.discovery"
LICENSE = """\
# Copyright the authors of hf_longattn.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
#
"""
FOUND = '''\
"""Find and import the modules that were bundled with this model, by their names in the package."""

from __future__ import annotations

import importlib
from types import ModuleType

FILES: dict[str, dict[str, str]] = {files}


def module_names(room: str) -> list[str]:
    """The modules of a room, sorted."""
    return sorted(FILES[room])


def load_module(room: str, name: str) -> ModuleType:
    """Import one of them."""
    return importlib.import_module(f"{{__package__}}.{{FILES[room][name]}}")
'''


def bundle_remote_code(folder: str | Path, *, user_code: bool = False) -> list[str]:
    """Write the modelling code of a saved Long model into its folder and name it in ``config.json``.

    Args:
        folder: of a saved Long model. Files of an earlier bundle are replaced; nothing else is touched but ``config.json``.
        user_code: bundle also what is not as this package was published: files of it that were changed, and mechanisms that were
            registered from other modules.

    Returns:
        The names of the files written, ``config.json`` last.

    Raises:
        CheckpointError: the folder has no readable ``config.json``, or that of another model.
        RemoteCodeError: code that is not as published and ``user_code`` is off, or a user's module that does not stand alone.
    """
    place = Path(folder)
    values = _config_values(place)
    family = FAMILIES[values["model_type"].removeprefix("long_")]
    config = family.config_class.from_pretrained(place, local_files_only=True)
    modules, origin = check_remote_code(config, user_code=user_code)
    entry = f"modeling_long_{family.module.rpartition('.')[2]}"
    stems = {name: entry if name == family.module else flat_name(name) for name in modules}
    for pattern in BUNDLED:
        for old in place.glob(pattern):
            old.unlink()
    for name, module in modules.items():
        text = FOUND.format(files=json.dumps(_by_room(stems), indent=4)) if name == DISCOVERY else module.flattened(stems)
        if name == family.module:
            text += _all_files(sorted(set(stems.values()) - {entry}))
        (place / f"{stems[name]}.py").write_text(_header(module, origin) + text, encoding="utf-8")
    _write_config(place / "config.json", {**values, "auto_map": _auto_map(family, config.model_type, entry)})
    return [*(f"{stem}.py" for stem in sorted(stems.values())), "config.json"]


def check_remote_code(config: Any, *, user_code: bool = False) -> tuple[dict[str, Module], str]:
    """The modules that a model with this config needs, by name, and where they come from.

    Args:
        config: of a Long model.
        user_code: whether code may be among them that is not as it was published.

    Raises:
        RemoteCodeError: as :func:`bundle_remote_code`.
    """
    modules = closure(_seeds(family_of(config), config))
    outside = [module for module in modules.values() if not module.own]
    for module in outside:
        _check_alone(module)
    return modules, _origin([module for module in modules.values() if module.own], outside, user_code)


def _config_values(folder: Path) -> dict[str, Any]:
    values = read_config(folder)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind.removeprefix("long_") not in FAMILIES or not kind.startswith("long_"):
        raise CheckpointError(
            f"{str(folder)!r} holds a model of type {kind!r}, which needs no code of this package; leave --remote-code out."
        )
    return values


def _seeds(family: Family, config: Any) -> Iterator[Module]:
    """The modules that nothing imports by an import statement: the family's and the mechanisms'."""
    names = {family.module, DISCOVERY}
    if family.own_mixin is not None:
        names.add(f"{PACKAGE}.families.{family.own_mixin.split('.')[0]}")
    names |= {mechanism_class(mechanism).__module__ for mechanism in _mechanisms(config, family)}
    for name in sorted(names):
        yield package_module(name) if name.split(".")[0] == PACKAGE else _outside(name)  # type: ignore[misc]


def _mechanisms(config: Any, family: Family) -> set[str]:
    """Every mechanism of the model, those that others are made of, and those of a default config, which transformers makes: the family's
    own, and the one for all, since the family's may follow from defaults of transformers that change from version to version."""
    found = {CROSS_MECHANISM, LongAttentionConfig().mechanism}
    layers = int(config.num_hidden_layers)
    for one in (config, family.config_class()):
        for attention in (one.long_attention, getattr(one, "decoder_long_attention", None)):
            if isinstance(attention, LongAttentionConfig):
                found |= set(_named({"mechanism": attention.mechanism, **attention.options}))
                for layer in {*range(layers), *attention.layers, *range(len(attention.turns))}:
                    name, options = attention.for_layer(layer)
                    found |= set(_named({"mechanism": name, **options}))
    return found


def _named(choice: Mapping[str, Any]) -> Iterator[str]:
    """The mechanism of a choice and, with every option in force, those inside it."""
    given = {name: value for name, value in choice.items() if name not in ("mechanism", "heads")}
    yield choice["mechanism"]
    for value in check_options(choice["mechanism"], given).to_dict().values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Mapping) and "mechanism" in inner:
                yield from _named(inner)


def _outside(name: str) -> Module:
    file = getattr(sys.modules.get(name), "__file__", None)
    if name == "__main__" or file is None:
        raise RemoteCodeError(
            f"A mechanism of this model is defined in {name}, which cannot be bundled; move it into a file of its own and import it."
        )
    return Module(name, Path(file))


def _check_alone(module: Module) -> None:
    """A user's file may import this package and installed ones, but no other file of theirs."""
    installed = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions()}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            named = ["." * node.level + (node.module or "")]
        elif isinstance(node, ast.ImportFrom):
            named = [(node.module or "").split(".")[0]]
        else:
            named = [alias.name.split(".")[0] for alias in node.names] if isinstance(node, ast.Import) else []
        for name in named:
            if name not in installed and name != PACKAGE:
                raise RemoteCodeError(
                    f"{module.path.name} imports {name!r}, which is in no installed package, so the bundle would not load elsewhere; "
                    "put what it needs into that one file."
                )


def _origin(own: list[Module], outside: list[Module], user_code: bool) -> str:
    """What the headers say the code comes from; refuses what was changed unless that was asked for."""
    known = provenance(module.path for module in own)
    changed = [os.path.relpath(path) for path in known.modified] if known is not None else []
    foreign = [f"{module.name} ({os.path.relpath(module.path)})" for module in outside]
    if not user_code and (foreign or changed or known is None):
        if foreign:
            what = f"This model uses a mechanism of your own, from {', '.join(foreign)}"
        elif changed:
            what = f"The code to bundle is not as it was published: {', '.join(changed[:3])} {'differ' if len(changed) > 1 else 'differs'}"
        else:
            what = "Neither an installed distribution nor a git checkout says where the running hf_longattn comes from"
        raise RemoteCodeError(f"{what}; add --bundle-user-code (user_code=True) if it is to be published with the model.")
    if known is None:
        return "hf_longattn of unknown origin"
    return known.origin + (", with local changes" if changed else "")


def _header(module: Module, origin: str) -> str:
    digest = hashlib.sha256(module.text.encode()).hexdigest()
    if not module.own:
        return (
            f"# Bundled with this model: a module of its author's, {module.path.name}, sha256 {digest}.\n# It is no part of hf_longattn.\n"
        )
    made = "in place of" if module.name == DISCOVERY else "by making its imports flat, from"
    file = "/".join([PACKAGE, *module.path.parts[len(module.path.parts) - len(module.name.split(".")) + 1 :]])
    if module.path.name == "__init__.py":
        file = f"{module.name.replace('.', '/')}/__init__.py"
    return f"{LICENSE}# Bundled with this model by {origin}: made {made}\n# {file}, sha256 {digest}.\n"


def _by_room(stems: Mapping[str, str]) -> dict[str, dict[str, str]]:
    rooms: dict[str, dict[str, str]] = {"families": {}, "mechanisms": {}}
    for name, stem in stems.items():
        parts = name.split(".")
        if parts[0] != PACKAGE:
            rooms["mechanisms"][stem] = stem
        elif len(parts) == 3 and parts[1] in rooms:
            rooms[parts[1]][parts[2]] = stem
    return rooms


def _all_files(stems: list[str]) -> str:
    """Import statements that are never run: transformers copies and downloads the files that it reads in them."""
    named = "".join(f"    from .{stem} import __name__ as _\n" for stem in stems)
    return f"\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:  # every file of this model, for transformers to find\n{named}"


def _auto_map(family: Family, model_type: str, entry: str) -> dict[str, str]:
    from transformers.models.auto import modeling_auto

    found = {"AutoConfig": f"{entry}.{family.config_class.__name__}"}
    for auto, auto_class in sorted(vars(modeling_auto).items()):
        if not auto.startswith("AutoModel") or getattr(auto_class, "_model_mapping", None) is None:
            continue
        if names := auto_class._model_mapping._model_mapping.get(model_type):
            found[auto] = f"{entry}.{names if isinstance(names, str) else names[0]}"
    return found


def _write_config(path: Path, values: dict[str, Any]) -> None:
    """Replace the file in one step."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)
