"""Checks for files that others wrote: which may be opened, limits on text, JSON and counts, and types of fields."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError, encoding_sentence, shortened

LARGEST_JSON = 256 * 2**20
"""Maximum size of a text file, in bytes. The index of the largest checkpoints has a few MB, a tokenizer tens of MB."""
DEEPEST = 100
"""Maximum levels of nested JSON, which is read recursively. Configs have about five."""
LAYERS = re.compile(r"(layers?|groups|group_num|depths?|blocks|experts)$")
"""Fields of a config that count modules to build."""
CHECKED = ("long_attention", "decoder_long_attention")
"""Fields that are checked elsewhere; their "blocks" are not modules."""
MOST_LAYERS = 1000
"""Maximum number of modules of one kind, unless the checkpoint has more tensors."""
MOST_LABELS = 1_000_000


def check_name(path: str | Path) -> None:
    """Refuse a path that reports and cards cannot contain.

    Raises:
        CheckpointError: it is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"The path {str(path)!a} is not valid UTF-8; rename it.") from None


def check_files(folder: Path, patterns: Iterable[str], folders: Iterable[str] = ()) -> None:
    """Check every file of a source that may be read or copied, without opening it.

    Links are followed inside the folder, and from a snapshot of the Hub's cache into its repository. Any other link would copy a file of
    this machine into the result, and perhaps upload it to the Hub.

    Args:
        folder: the source.
        patterns: of file names in the folder.
        folders: sub-folders, which are checked with everything below them.

    Raises:
        CheckpointError: a link that is broken or leads outside, something that is not a regular file, or a file without read permission.
    """
    homes, folders = homes_of(folder), list(folders)
    for path in (folder / name for name in folders):
        check_link(path, homes)
    for path in sorted(_chosen(folder, patterns, folders)):
        check_link(path, homes)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{str(path)!r} is a folder where a file is expected; remove it.")
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{str(path)!r} is not a regular file; remove it.")
        if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            raise CheckpointError(f"{str(path)!r} cannot be read; check its permissions.")


def homes_of(folder: Path) -> list[Path]:
    """Where links of a checkpoint may lead: into its folder and, in a snapshot of the Hub's cache, to the repository's blobs."""
    place = folder.resolve()
    return [place, place.parent.parent / "blobs"] if place.parent.name == "snapshots" else [place]


def _chosen(folder: Path, patterns: Iterable[str], folders: Iterable[str]) -> Iterator[Path]:
    try:
        for pattern in dict.fromkeys(patterns):
            yield from folder.glob(pattern)
        for name in folders:
            yield from (path for path in (folder / name).rglob("*") if path.is_symlink() or not path.is_dir())
    except OSError as error:
        raise CheckpointError(f"The folder {str(folder)!r} cannot be read: {error.strerror}.") from error


def check_link(path: Path, homes: list[Path]) -> None:
    """Refuse a link that is broken or leads out of `homes`.

    Raises:
        CheckpointError: naming the target.
    """
    if not path.is_symlink():
        return
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a loop raises either, depending on the version of Python
        raise CheckpointError(
            f"{str(path)!r} is a link to {os.readlink(path)!r}, which does not exist; put a file in its place."
        ) from error
    if not any(home in target.parents for home in homes):
        raise CheckpointError(
            f"{str(path)!r} is a link to {str(target)!r}, outside of its checkpoint; replace it with a copy of that file."
        )


def read_text(path: Path, largest: int = LARGEST_JSON) -> str:
    """The UTF-8 text of a regular file.

    Raises:
        CheckpointError: it is not a regular file, is larger than `largest` bytes or not UTF-8, or cannot be read.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # opening a pipe would block
            kind = "a folder" if stat.S_ISDIR(about.st_mode) else "not a regular file"
            raise CheckpointError(f"{str(path)!r} is {kind}; remove it, or give another file.")
        if about.st_size > largest:
            raise CheckpointError(f"{str(path)!r} has {about.st_size / 1e6:,.0f} MB, but at most {largest / 1e6:,.0f} MB are read.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except CheckpointError:
        raise
    except UnicodeDecodeError as error:
        raise CheckpointError(encoding_sentence(path, error)) from error
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is not a valid path ({error}).") from error


def read_json(path: Path) -> Any:
    """The JSON in a file, with limited nesting and text that can be encoded as UTF-8.

    Raises:
        CheckpointError: it is not JSON, is too large, or cannot be read.
    """
    try:
        text = read_text(path)
    except CheckpointError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise CheckpointError(f"{str(path)!r} is not valid JSON ({error.__cause__}).") from error
        raise
    try:
        value = json.loads(text, object_hook=_decode_float)
    except RecursionError:
        raise CheckpointError(f"{str(path)!r} is not valid JSON (nested too deeply).") from None
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is not valid JSON ({error}).") from error
    level = [value]
    for _ in range(DEEPEST + 1):
        containers = [value for value in level if isinstance(value, dict | list)]
        level = [inner for value in containers for inner in (value.values() if isinstance(value, dict) else value)]
    if level:
        raise CheckpointError(f"{str(path)!r} is not valid JSON (nested too deeply).")
    if re.search(r"\\u[dD][89a-fA-F]", text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise CheckpointError(f"{str(path)!r} is not valid JSON (half of a surrogate pair).") from None
    return value


def _decode_float(values: dict[str, Any]) -> Any:
    """``{"__float__": "Infinity"}`` as a number: how transformers writes infinite numbers and NaN."""
    tag = values.get("__float__") if len(values) == 1 else None
    return float(tag) if tag in ("Infinity", "-Infinity", "NaN") else values


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: as :func:`read_json`, or it is not an object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{str(path)!r} must contain a JSON object, not {type(value).__name__}.")
    return value


def check_counts(values: Mapping[str, Any], name: str, tensors: int = 0) -> None:
    """Refuse counts that would build a model far larger than its tensors, before any tensor is read.

    Args:
        values: of a config.json; nested objects are checked, too.
        name: of the checkpoint.
        tensors: number of tensors in the checkpoint.

    Raises:
        CheckpointError: a count is larger than the number of tensors allows.
    """
    for field, value in values.items():
        if field in CHECKED:
            continue
        if isinstance(value, Mapping) and field not in ("label2id", "id2label"):
            check_counts(value, name, tensors)
        limit = MOST_LABELS if field == "num_labels" else max(MOST_LAYERS, tensors) if LAYERS.search(field) else None
        for count in value if isinstance(value, list) else [value]:
            if limit is not None and isinstance(count, int | float) and not count <= limit:
                less = f"which is more than its {tensors} tensors allow" if tensors else f"but at most {limit} are built"
                raise CheckpointError(f"The config.json of {name!r} says {field}={count}, {less}.")


def _all_text(values: Any) -> bool:
    return all(isinstance(entry, str) for entry in values)


TEXT, NATURAL, COUNT, NUMBER, BOOLEAN = "text", "a whole number", "a whole number of 1 or more", "a number", "true or false"
NAMES = "a name, a regular expression or a list of names"
TYPES: dict[str, Callable[[Any], bool]] = {
    TEXT: lambda value: isinstance(value, str),
    NATURAL: lambda value: isinstance(value, int) and not isinstance(value, bool),
    COUNT: lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
    NUMBER: lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    NAMES: lambda value: isinstance(value, str) or (isinstance(value, list) and _all_text(value)),
    BOOLEAN: lambda value: isinstance(value, bool),
    "an object": lambda value: isinstance(value, dict),
    "an object of text": lambda value: isinstance(value, dict) and _all_text(value.values()),
    "an object of class names": lambda value: isinstance(value, dict) and all(isinstance(entry, str | list) for entry in value.values()),
    "a list of text": lambda value: isinstance(value, list) and _all_text(value),
    "a list of one class name": lambda value: isinstance(value, list) and len(value) <= 1 and _all_text(value),
}
"""Types of JSON fields, in the words of a message."""
CONFIG_FIELDS = {
    "model_type": TEXT,
    "architectures": "a list of one class name",
    "auto_map": "an object of class names",
    **dict.fromkeys(("long_attention", "extended_from"), "an object"),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "max_position_embeddings", "n_positions"), NATURAL),
}


FORMAT_FIELD, FORMAT = "long_attention_format", 1
"""The field of ``config.json`` with the version of the fields that this package adds, and the present version.

A changed name, option or default of a mechanism is a new version, since an option that is not written has its mechanism's default.
"""


def check_format(values: Mapping[str, Any]) -> None:
    """Refuse a ``config.json``, or a config nested in it, of another version than :data:`FORMAT`. A missing number is accepted.

    Raises:
        CheckpointError: the format is newer than this package, or not a positive whole number.
    """
    written = values.get(FORMAT_FIELD, FORMAT)
    if type(written) is not int or written < 1:
        raise CheckpointError(
            f"config.json says {FORMAT_FIELD}={written!r}, which must be a whole number from 1 to {FORMAT}; convert the model again."
        )
    if written > FORMAT:
        raise CheckpointError(
            f"config.json says {FORMAT_FIELD}={written}, but this version of hf_longattn reads formats up to {FORMAT}; type "
            "pip install . in a newer clone of its repository."
        )
    for name, part in values.items():
        if isinstance(part, Mapping) and not str(name).endswith("long_attention"):
            check_format(part)


def check_config(values: Mapping[str, Any], name: str) -> None:
    """Refuse a config.json whose fields have types that transformers does not write.

    Args:
        values: of the config.json.
        name: of the checkpoint.

    Raises:
        CheckpointError: naming the field and its expected type.
    """
    check_fields(values, CONFIG_FIELDS, f"The config.json of {name!r}")
    check_counts(values, name)


def check_fields(values: Mapping[str, Any], fields: Mapping[str, Any], where: str, advice: str = "") -> None:
    """Refuse a JSON object with fields of unexpected types; missing ones and ``null`` are allowed.

    Args:
        values: the object.
        fields: by name, the expected type in the words of :data:`TYPES`, or fields of an object, or a list of one of these. A name that
            ends in "!" is required in an object that is not empty.
        where: the file, as the subject of the message.
        advice: the end of the message.

    Raises:
        CheckpointError: naming the field, its value and its expected type.
    """
    for field, value, expected in _misfits(values, fields, ""):
        ending = f"; {advice}" if advice else ""
        raise CheckpointError(f"{where} says {field}={shortened(repr(value), 60)}, which must be {expected}{ending}.")


def _misfits(value: Any, expected: Any, field: str) -> Iterator[tuple[str, Any, str]]:
    if isinstance(expected, Mapping):
        if not isinstance(value, Mapping):
            yield field, value, "an object"
            return
        for key, inner in expected.items():
            name, required = key.removesuffix("!"), key.endswith("!") and bool(value)
            if value.get(name) is not None or required:
                yield from _misfits(value.get(name), inner, f"{field}.{name}".lstrip("."))
    elif isinstance(expected, list):
        if not isinstance(value, list):
            yield field, value, "a list"
            return
        for number, item in enumerate(value):
            yield from _misfits(item, expected[0], f"{field}[{number}]")
    elif not TYPES[expected](value):
        yield field, value, expected


def named_class(values: Mapping[str, Any], default: str) -> str:
    """The class that a config.json names, or `default` if it names none. Call :func:`check_config` first."""
    return (values.get("architectures") or [default])[0]


# Names in the config.json of a plain architecture with mechanisms. Only this package registers them.

GENERIC_TYPE, GENERIC_CLASS = "long_generic_", "LongGeneric"
"""Prefixes of the model type and of the class name."""


def generic_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a plain config with the names of a model with mechanisms."""
    named = [GENERIC_CLASS + str(name) for name in values.get("architectures") or []]
    return {**values, "model_type": GENERIC_TYPE + str(values["model_type"]), **({"architectures": named} if named else {})}


def is_long(values: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` or a part of it belongs to a Long model, or to a plain one with mechanisms."""
    return any("long_attention" in part for part in (values, *values.values()) if isinstance(part, Mapping))


def base_type(model_type: str) -> str:
    """The model type that a long or generic one extends; another is returned as it is."""
    return model_type.removeprefix(GENERIC_TYPE).removeprefix("long_")


def is_generic(values: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` belongs to a plain architecture with mechanisms."""
    return str(values.get("model_type")).startswith(GENERIC_TYPE)


def plain_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a :func:`is_generic` config with the names of the plain architecture."""
    named = values.get("architectures")
    classes = [str(name).removeprefix(GENERIC_CLASS) for name in named] if isinstance(named, list) else []
    return {**values, "model_type": str(values.get("model_type")).removeprefix(GENERIC_TYPE), "architectures": classes}
