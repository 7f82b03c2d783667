"""Bundle a model's code with its weights. It then loads where this package is not installed.

    bundle_remote_code("my-long-bert")
    AutoModel.from_pretrained("my-long-bert", trust_remote_code=True)     # without hf_longattn

A bundle consists of the modules of this package that the model's family and mechanisms import. transformers loads files of one folder and
follows only ``from .name import``, so ``from ..common.dense import x`` becomes ``from .longattn_engines_common_dense import x``. Every
file gets a header with its origin; two also get a list of bundled files. ``config.json`` names the classes under ``auto_map``.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from .. import __version__
from ..configuration import LongAttentionConfig
from ..declarations import FILE as FACTS_FILE
from ..errors import CheckpointError, RemoteCodeError
from ..families import FAMILIES, Family
from ..inputs.common.base import kind_of
from ..lazy import imports_for_type_checkers
from ..loading import load_part
from ..mechanisms import check_options, mechanism_class
from ..modeling.attach.attention_sites import CROSS_MECHANISM
from ..modeling.family.definition import derived_facts, family_of
from ..modeling.family.module_text import module_text
from ..modeling.family.registration import MULTIMODAL_TYPE, auto_classes, mapped_names
from ..staging import check_writable, write_text
from .card import read_config

PACKAGE = "hf_longattn"
DISTRIBUTION = "hf-longattn"
ROOT = Path(__file__).resolve().parent.parent
MARK = "# Bundled with this model"
"""Start of a header line that every bundled file has, and no other file."""
HEADER_BYTES = 2048
"""Number of bytes at the start of a file that are searched for ``MARK``."""
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


def bundle_remote_code(folder: str | Path, *, user_code: bool = False) -> list[str]:
    """Write the modelling code of a saved Long model into its folder. ``config.json`` names it.

    Args:
        folder: a saved Long model. Files of an earlier bundle are replaced; no other file but ``config.json`` changes. This file stops
            naming code before the first file is written, and names it after the last, so an interrupted bundle leaves a model without code.
        user_code: also bundle modified files of this package, and mechanisms that were registered from other modules.

    Returns:
        The names of the files written, ``config.json`` last.

    Raises:
        CheckpointError: ``config.json`` is unreadable or not a Long model's, the folder is not writable, or a file or folder that is not
            from a bundle has the name of a bundled file.
        RemoteCodeError: modified or custom code without ``user_code``, or a custom module that imports other files.
    """
    place = Path(folder)
    values = read_config(place)
    model_type = values.get("model_type")
    if model_type == MULTIMODAL_TYPE:
        raise RemoteCodeError(
            f"{str(folder)!r} has a backbone that transformers finds by its model type, and bundled code does not enter it there; omit "
            "--remote-code, and install hf_longattn where the model is loaded."
        )
    if not isinstance(model_type, str) or not model_type.startswith("long_") or model_type.removeprefix("long_") not in FAMILIES:
        raise CheckpointError(
            f"{str(folder)!r} holds a model of type {model_type!r}, which needs no code of this package; omit --remote-code."
        )
    check_writable(place)
    family = FAMILIES[model_type.removeprefix("long_")]
    config = load_part(family.config_class, place, local_files_only=True)
    modules, origin = check_remote_code(config, user_code=user_code)
    entry = f"modeling_long_{family.module.rpartition('.')[2]}"
    files = {name: entry if name == family.module else flat_name(name) for name in modules}
    texts: dict[str, str] = {}
    for name, module in modules.items():
        text = _header(module, origin) + module.flattened(files)
        if name == f"{PACKAGE}.naming":
            text += f"\nFLAT_FILES.update({json.dumps(_by_package(files), indent=4)})\n"
        if name == family.module:  # transformers copies and downloads the files that it finds in import statements
            imports = "".join(f"    from .{file} import __name__ as _\n" for file in sorted(set(files.values()) - {entry}))
            text += f"\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:  # never run: lists every file of this model\n{imports}"
        texts[f"{files[name]}.py"] = text
    earlier = bundled_code(place)
    for file in texts:
        if os.path.lexists(place / file) and place / file not in earlier:
            raise CheckpointError(
                f"{str(place / file)!r} has the name of a file that is bundled with the model, but is not one; rename it or move it away."
            )
    if values.pop("auto_map", None) is not None:
        _write_config(place, values)
    for file, text in texts.items():
        write_text(place / file, text)
    for old in earlier:
        if old.name not in texts:
            old.unlink()
    _write_config(place, {**values, "auto_map": _auto_map(family, config.model_type, entry)})
    return [*sorted(texts), "config.json"]


def bundled_code(folder: Path) -> list[Path]:
    """The files that :func:`bundle_remote_code` wrote into a folder, by the mark in their headers."""

    def is_marked(file: Path) -> bool:
        with file.open("rb") as opened:
            return any(line.startswith(MARK.encode()) for line in opened.read(HEADER_BYTES).splitlines())

    return [file for file in sorted(folder.glob("*.py")) if file.is_file() and is_marked(file)]


def check_remote_code(config: Any, *, user_code: bool = False) -> tuple[dict[str, Module], str]:
    """Name -> module, for all modules that a model with this config needs. With their origin as text for headers.

    Args:
        config: of a Long model.
        user_code: whether modified and custom code is allowed.

    Raises:
        RemoteCodeError: as :func:`bundle_remote_code`.
    """
    modules = closure(_seeds(family_of(config), config))
    custom = [module for module in modules.values() if not module.own]
    for module in custom:
        _check_self_contained(module)
    return modules, _origin([module for module in modules.values() if module.own], custom, user_code)


# ---- collect the modules


def _seeds(family: Family, config: Any) -> Iterator[Module]:
    """The family's module and the mechanisms' modules, which are imported by name at run time."""
    names = {family.module, *(mechanism_class(mechanism).__module__ for mechanism in _mechanisms(config, family))}
    for name in sorted(names):
        yield package_module(name) if name.split(".")[0] == PACKAGE else _custom_module(name)  # type: ignore[misc]


def _mechanisms(config: Any, family: Family) -> set[str]:
    """Names of the mechanisms in the model's config, members of composites included. Also in the default configs of family and package.
    transformers creates default configs. The package's default is added since the family's can change with transformers' version."""
    kind = kind_of(family)
    if kind.apart:
        return set().union(*(_mechanisms(part, kind.parts[name].family) for name, part in kind.configs(config).items()))
    mechanisms = {CROSS_MECHANISM, LongAttentionConfig().mechanism}
    layers = int(config.num_hidden_layers)
    for settings in (config, family.config_class()):
        for attention in (settings.long_attention, getattr(settings, "decoder_long_attention", None)):
            if isinstance(attention, LongAttentionConfig):
                mechanisms |= set(_members({"mechanism": attention.mechanism, **attention.options}))
                for layer in {*range(layers), *attention.layers, *range(len(attention.turns))}:
                    name, options = attention.for_layer(layer)
                    mechanisms |= set(_members({"mechanism": name, **options}))
    return mechanisms


def _members(choice: Mapping[str, Any]) -> Iterator[str]:
    """Yield the name of the chosen mechanism and of mechanisms among its options. Default values are included."""
    options = {name: value for name, value in choice.items() if name not in ("mechanism", "heads")}
    yield choice["mechanism"]
    for value in check_options(choice["mechanism"], options).to_dict().values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Mapping) and "mechanism" in inner:
                yield from _members(inner)


def _custom_module(name: str) -> Module:
    file = getattr(sys.modules.get(name), "__file__", None)
    if name == "__main__" or file is None:
        raise RemoteCodeError(
            f"A mechanism of this model is defined in {name}, which cannot be bundled; move it into its own file and import it."
        )
    return Module(name, Path(file))


def _check_self_contained(module: Module) -> None:
    """Refuse a custom file with other imports. Allowed are this package, the standard library and installed packages."""
    installed = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions(), PACKAGE}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom):
            named = ["." * node.level + (node.module or "") if node.level else (node.module or "").split(".")[0]]
        else:
            named = [alias.name.split(".")[0] for alias in node.names] if isinstance(node, ast.Import) else []
        for name in named:
            if name not in installed:
                raise RemoteCodeError(
                    f"{module.path.name} imports {name!r}, which is not an installed package, so the bundle would not load elsewhere; "
                    "put what it needs into that one file."
                )


@dataclass(frozen=True)
class Module:
    """A module of this package, or a user's module that imports from this package.

    made: source code generated for a derived family from the facts in the file ``path``; ``None`` if ``path`` is the module itself.
    """

    name: str
    path: Path
    made: str | None = None

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8") if self.made is None else self.made

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def own(self) -> bool:
        """Whether it belongs to this package."""
        return self.name.split(".")[0] == PACKAGE

    @cached_property
    def imports(self) -> list[tuple[ast.ImportFrom, list[Import]]]:
        """Every statement that imports from this package, with the names it imports."""
        statements = []
        parts = self.name.split(".")
        package = parts if self.path.name == "__init__.py" else parts[:-1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == PACKAGE for alias in node.names):
                raise RemoteCodeError(
                    f"{self.path.name}, line {node.lineno}, reads {ast.unparse(node)!r}, which cannot be bundled; "
                    f"import the names that it needs, for example 'from {PACKAGE} import register_mechanism'."
                )
            if not isinstance(node, ast.ImportFrom):
                continue
            base = package[: len(package) + 1 - node.level] if node.level and self.own else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            if base[:1] == [PACKAGE] and (self.own or not node.level):
                statements.append((node, [_resolved(base, alias, f"{self.path.name}, line {node.lineno},") for alias in node.names]))
        return statements

    def flattened(self, files: Mapping[str, str]) -> str:
        """The text with flat imports of this package's modules. ``files`` maps dotted names to flat file names without ``.py``."""
        lines = self.text.splitlines()
        for node, imports in sorted(self.imports, key=lambda pair: -pair[0].lineno):
            written = [" " * node.col_offset + line for line in _flat_imports(imports, files)]
            lines[node.lineno - 1 : node.end_lineno or node.lineno] = written
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Import:
    """One imported name."""

    module: str  # dotted
    name: str | None  # None: the module itself
    alias: str | None


@cache
def package_module(name: str) -> Module | None:
    """The module of this package with a dotted name, if there is one."""
    path = ROOT.joinpath(*name.split(".")[1:])
    if path.is_dir():
        return Module(name, path / "__init__.py")
    if path.with_suffix(".py").is_file():
        return Module(name, path.with_suffix(".py"))
    package, _, module = name.rpartition(".")
    derived = derived_facts() if package == f"{PACKAGE}.families" else {}
    return Module(name, FACTS_FILE, module_text(*derived[module])) if module in derived else None


def closure(seeds: Iterable[Module]) -> dict[str, Module]:
    """The given modules and every module of this package that they import, directly or indirectly. Sorted by name."""
    modules: dict[str, Module] = {}
    waiting = list(seeds)
    while waiting:
        module = waiting.pop()
        if module.name not in modules:
            modules[module.name] = module
            named = {imported.module for _, imports in module.imports for imported in imports}
            waiting += [imported for name in named if (imported := package_module(name)) is not None]
    return dict(sorted(modules.items()))


def flat_name(name: str) -> str:
    """``hf_longattn.engines.linear`` -> ``longattn_engines_linear``; a user's ``mine.attention`` -> ``longattn_user_mine_attention``."""
    first, *inner = name.split(".")
    return "_".join(["longattn", *inner] if first == PACKAGE else ["longattn_user", first, *inner])


def _resolved(base: list[str], alias: ast.alias, where: str) -> Import:
    """The module and name that ``from base import alias`` imports. Public names of the package are traced to their module."""
    dotted = ".".join([*base, alias.name])
    if base == [PACKAGE] and (home := imports_for_type_checkers(PACKAGE).get(alias.name)):
        return Import(f"{PACKAGE}.{home}", alias.name, alias.asname)
    if package_module(dotted) is not None:
        return Import(dotted, None, alias.asname or alias.name)
    if base == [PACKAGE] or package_module(".".join(base)) is None:
        raise RemoteCodeError(f"{where} imports {dotted!r}, which is in no module that can be bundled.")
    return Import(".".join(base), alias.name, alias.asname)


def _flat_imports(imports: Iterable[Import], files: Mapping[str, str]) -> Iterator[str]:
    by_module: dict[str, list[str]] = {}
    for entry in imports:
        if entry.name is None:
            yield f"from . import {files[entry.module]} as {entry.alias}"
        else:
            by_module.setdefault(files[entry.module], []).append(entry.name + (f" as {entry.alias}" if entry.alias else ""))
    yield from (f"from .{file} import {', '.join(names)}" for file, names in by_module.items())


def _by_package(files: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Package -> module -> flat file name, for modules that ``hf_longattn.naming`` imports by name."""
    packages: dict[str, dict[str, str]] = {"families": {}, "mechanisms": {}}
    for name, file in files.items():
        parts = name.split(".")
        if parts[0] != PACKAGE:
            packages["mechanisms"][file] = file
        elif len(parts) == 3 and parts[1] in packages:
            packages[parts[1]][parts[2]] = file
    return packages


# ---- the modules' origin


@dataclass(frozen=True)
class Provenance:
    """origin: for example "hf_longattn 0.1.0, git commit 0123456789ab"; modified: files that differ from it."""

    origin: str
    modified: tuple[Path, ...]


def provenance(files: Iterable[Path]) -> Provenance | None:
    """Compare files of this package with the installed distribution's record. In a checkout, with git's last commit; ``None`` if neither
    knows them."""
    paths = [path.resolve() for path in files]
    return _of_distribution(paths) or _of_checkout(paths)


def _of_distribution(files: list[Path]) -> Provenance | None:
    try:
        recorded = importlib.metadata.distribution(DISTRIBUTION).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    hashes = {Path(str(file.locate())).resolve(): file.hash for file in recorded if file.hash is not None}
    if not any(path in hashes for path in files):
        return None

    def unchanged(path: Path) -> bool:
        known = hashes.get(path)
        if known is None:
            return False
        return base64.urlsafe_b64encode(hashlib.new(known.mode, path.read_bytes()).digest()).decode().rstrip("=") == known.value

    return Provenance(f"{PACKAGE} {__version__}", tuple(path for path in files if not unchanged(path)))


def _of_checkout(files: list[Path]) -> Provenance | None:
    if not files:
        return None
    folder, names = files[0].parent, [str(path) for path in files]
    commit, tracked = _git(folder, "rev-parse", "HEAD"), _git(folder, "ls-files", "--full-name", "--", *names)
    if not commit or not tracked:
        return None
    top = Path((_git(folder, "rev-parse", "--show-toplevel") or "").strip()).resolve()
    known = {top / name for name in tracked.splitlines()}
    changed = {top / name for name in (_git(folder, "diff", "--name-only", "HEAD", "--", *names) or "").splitlines()}
    modified = tuple(path for path in files if path not in known or path in changed)
    return Provenance(f"{PACKAGE} {__version__}, git commit {commit.strip()[:12]}", modified)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return None
    return done.stdout if done.returncode == 0 else None


def _origin(package_modules: list[Module], custom: list[Module], user_code: bool) -> str:
    """The origin as text for headers. Refuses modified and custom code unless ``user_code`` is set."""
    known = provenance(module.path for module in package_modules)
    changed = [os.path.relpath(path) for path in known.modified] if known is not None else []
    if not user_code and (custom or changed or known is None):
        if custom:
            files = ", ".join(f"{module.name} ({os.path.relpath(module.path)})" for module in custom)
            what = f"This model uses a custom mechanism, from {files}"
        elif changed:
            what = f"The code to bundle differs from the published version: {', '.join(changed[:3])}"
        else:
            what = "Neither an installed distribution nor a git checkout tells the origin of the running hf_longattn"
        raise RemoteCodeError(f"{what}; add --bundle-user-code (user_code=True) to publish it with the model.")
    if known is None:
        return f"{PACKAGE} of unknown origin"
    return known.origin + (", with local changes" if changed else "")


def _header(module: Module, origin: str) -> str:
    digest = hashlib.sha256(module.text.encode()).hexdigest()
    if not module.own:
        return f"{MARK}: a module by its author, {module.path.name}, sha256 {digest}.\n# It is not part of {PACKAGE}.\n"
    file = f"{PACKAGE}/{module.path.relative_to(ROOT).as_posix()}"
    return f"{LICENSE}{MARK} by {origin}: {file},\n# sha256 {digest}, with its imports flattened.\n"


# ---- config.json


def _write_config(folder: Path, values: Mapping[str, Any]) -> None:
    write_text(folder / "config.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _auto_map(family: Family, model_type: str, entry: str) -> dict[str, str]:
    classes = {"AutoConfig": f"{entry}.{family.config_class.__name__}"}
    for auto, table in auto_classes():
        if names := mapped_names(table)[0].get(model_type):
            classes[auto] = f"{entry}.{names if isinstance(names, str) else names[0]}"
    return classes
