"""Checks for files that others wrote: which may be opened, limits on text, JSON and counts, and types of fields."""

from __future__ import annotations

import contextlib
import errno
import glob
import itertools
import json
import os
import platform
import re
import shutil
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any, NamedTuple

from safetensors import SafetensorError

from .errors import CheckpointError, DestinationExistsError, LongAttentionError, encoding_sentence, shortened

CONVERSION_REPORT = "conversion_report.json"
"""File name of the report on how a checkpoint was converted."""
GRAPHS = {"onnx": "model.onnx", "torch": "model.pt2"}
"""Format of an exported graph -> its file in the folder."""
PREDICTIONS = ("predictions.json", "predictions.txt", "*_predictions.json", "null_odds.json")
"""Files with a training's answers to the validation data. Some of them quote the data."""
TAGS = ("hf_longattn", "long-context")
"""The tags of every long model on the Hub."""
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64")
"""Extensions of files that are read as sound."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""The form of a Hub repository's name."""

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


# Build a folder or file next to its destination, and rename it once complete. Nobody sees a partial result.

MACHINE = re.sub(r"[^A-Za-z0-9]", "_", platform.node()) or "unnamed"
"""This machine's name in the names of unfinished folders. On a shared file system, processes of two machines can have the same id."""
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.EBUSY, errno.ELOOP)
"""Codes of an OSError for no space, no permission, a mount point or a link to itself."""
STALE = 24 * 3600
"""Seconds without a change after which another machine's unfinished folder counts as abandoned."""


ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a process to end. By default they end it at once."""


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """Raise ``SystemExit`` at a signal that asks the process to end. Unfinished files are then removed.

    Ctrl-C raises ``KeyboardInterrupt`` in the same way. Signals that are handled or ignored already are left alone. So are all signals
    outside the main thread, where no handler can be set.
    """
    main = threading.current_thread() is threading.main_thread()
    handled = [number for number in ENDING if main and signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:
        for ending in handled:  # a second signal does not interrupt the clean-up
            signal.signal(ending, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def destination_path(destination: str | Path) -> Path:
    """The absolute path of a destination; links are not resolved.

    Raises:
        CheckpointError: its name is not UTF-8, so reports and cards cannot contain it.
    """
    check_name(destination)
    return Path(os.path.abspath(Path(destination).expanduser()))


def unused_name(name: str) -> str:
    """``name``, or ``name-2`` … if that name exists in the working directory."""
    return next(candidate for number in itertools.count(1) if not Path(candidate := name if number == 1 else f"{name}-{number}").exists())


def check_destination(destination: Path, *sources: Path, overwrite: bool) -> None:
    """Refuse a destination that must not be written.

    Raises:
        DestinationExistsError: it exists, and `overwrite` is off or it is neither an empty nor a checkpoint folder.
        CheckpointError: it is a source, contains one, or lies within one.
    """
    resolved = Path(os.path.realpath(destination))  # Path.resolve raises for a link to itself
    for source in sources:
        origin = Path(os.path.realpath(source))
        if origin == resolved or resolved in origin.parents or origin in resolved.parents:
            raise CheckpointError(f"The destination {str(destination)!r} and the source {str(source)!r} overlap; choose another.")
    if not os.path.lexists(destination):
        return
    if not overwrite:
        raise DestinationExistsError(f"{str(destination)!r} already exists; choose another folder or add --overwrite.")
    replaceable = destination.is_dir() and not destination.is_symlink()
    if not replaceable or (any(destination.iterdir()) and not (destination / "config.json").is_file()):
        raise DestinationExistsError(
            f"{str(destination)!r} is not a checkpoint folder, so --overwrite does not replace it; choose another folder."
        )
    if os.path.ismount(destination):
        raise DestinationExistsError(f"{str(destination)!r} is a mount point, which cannot be replaced; choose a folder in it.")


@contextlib.contextmanager
def staged_folder(destination: Path, *, needed_bytes: int = 0, overwrite: bool = False) -> Iterator[Path]:
    """A new folder next to `destination`, renamed to it when the block succeeds.

    It is removed when the block fails or the process is asked to end. Folders of killed runs are removed first; on a shared file system,
    folders of another machine only after a day without a change. With `overwrite`, an existing destination is renamed aside and the new
    folder renamed into its place. A run killed between the two renames leaves the old folder aside, and the next run restores it.

    Raises:
        DestinationExistsError: the destination was created by another process.
        CheckpointError: not enough disk space, before or while writing, or no permission.
    """
    with ending_cleanly():
        yield from _staged_folder(destination, needed_bytes, overwrite)


def _staged_folder(destination: Path, needed_bytes: int, overwrite: bool) -> Iterator[Path]:
    parent, name = Path(os.path.realpath(destination.parent)), destination.name
    new_parents = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    stage = parent / f".{name}.partial-{MACHINE}-{os.getpid()}"
    try:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _clean(parent, name)
            free = shutil.disk_usage(parent).free
            stage.mkdir()
        except OSError as error:
            raise CheckpointError(_sentence(error, parent)) from error
        if needed_bytes > free:
            raise CheckpointError(
                f"The result needs {needed_bytes / 1e6:,.0f} MB, but {str(parent)!r} has {free / 1e6:,.0f} MB free; nothing was written."
            )
        yield stage
        for path in [*stage.rglob("*"), stage]:
            _sync(path)
        _swap(stage, destination, overwrite)
    except OSError as error:
        if error.errno in REFUSED:
            raise CheckpointError(_sentence(error, parent)) from error
        raise
    except LongAttentionError as error:  # the folder that it names is removed
        if str(stage) not in str(error):
            raise
        raise type(error)(str(error).replace(str(stage), str(destination))) from error
    except SafetensorError as error:  # names the system's error only in its text
        if os.strerror(errno.ENOSPC) in str(error):
            raise CheckpointError(_sentence(OSError(errno.ENOSPC, ""), parent)) from error
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for folder in new_parents:  # parents of a result that failed
            with contextlib.suppress(OSError):  # not empty, or never created
                folder.rmdir()


def copy_folder(source: Path, target: Path) -> None:
    """Copy the files below a folder. Copies have the modes of new files, not those of the source."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_dir():
            copy_folder(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def give_usual_modes(folder: Path) -> None:
    """Give all files below a folder the mode of a new file. safetensors writes files that only their owner can read."""
    probe = folder / f".mode-{os.getpid()}"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def check_new_file(file: Path) -> None:
    """Refuse a file that exists, or whose folder is missing or not writable.

    Raises:
        DestinationExistsError, CheckpointError: naming the file or the folder.
    """
    check_name(file)
    if os.path.lexists(file):
        raise DestinationExistsError(f"{str(file)!r} already exists; choose another file.")
    if not file.absolute().parent.is_dir():
        raise CheckpointError(f"The folder {str(file.absolute().parent)!r} does not exist; make it, or choose another file.")
    check_writable(file.parent)


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be created or written in, before slow work. Nothing is left there.

    Raises:
        CheckpointError: naming the folder, or its nearest parent that exists.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise CheckpointError(_sentence(error, place)) from error


@contextlib.contextmanager
def staged_file(file: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A new file next to `file`, renamed to it when the block succeeds.

    It has the same extension, and is removed when the block fails. A link is replaced, not its target.

    Raises:
        DestinationExistsError: without `overwrite`, if the file exists.
        CheckpointError: not enough disk space, or no permission.
    """
    ending = os.fsdecode(os.fsencode(file.name)[-100:].lstrip(bytes(range(0x80, 0xC0))))  # cut at the start of a character
    stage = file.absolute().with_name(f".partial-{MACHINE}-{os.getpid()}-{ending}")
    try:
        with ending_cleanly():
            yield stage
            if not overwrite and os.path.lexists(file):
                raise DestinationExistsError(f"{str(file)!r} was created by another process; choose another file.")
            _sync(stage)
            os.replace(stage, file)
    except OSError as error:
        if error.errno in REFUSED:
            raise CheckpointError(_sentence(error, stage.parent)) from error
        raise
    finally:
        stage.unlink(missing_ok=True)


def write_text(file: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a complete UTF-8 file or nothing, by :func:`staged_file`."""
    with staged_file(file, overwrite=overwrite) as stage:
        stage.write_text(text, encoding="utf-8")


def _swap(stage: Path, destination: Path, overwrite: bool) -> None:
    if not os.path.lexists(destination):
        os.rename(stage, destination)
    elif not overwrite:
        raise DestinationExistsError(f"{str(destination)!r} was created by another process; choose another folder or add --overwrite.")
    else:
        aside = stage.with_name(f".{destination.name}.replaced-{MACHINE}-{os.getpid()}")
        os.rename(destination, aside)
        try:
            os.rename(stage, destination)
        except OSError:
            os.rename(aside, destination)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _sync(destination.parent)


def _clean(parent: Path, name: str) -> None:
    """Remove folders of killed runs. Restore a destination that a killed run renamed aside and did not replace."""
    for leftover in sorted(parent.glob(f".{glob.escape(name)}.replaced-*")):
        if _is_running(leftover):
            continue
        if not (parent / name).exists():
            os.rename(leftover, parent / name)
        else:
            shutil.rmtree(leftover)
    for leftover in sorted(parent.glob(f".{glob.escape(name)}.partial-*")):
        if not _is_running(leftover):
            shutil.rmtree(leftover)


def _is_running(leftover: Path) -> bool:
    _, *machine, number = leftover.name.rpartition(".")[2].split("-")
    if machine not in ([MACHINE], []) or os.name == "nt":  # on Windows, signal 0 would end the process
        changed = [0.0]
        for path in (leftover, *leftover.rglob("*")):
            with contextlib.suppress(OSError):  # removed by its process
                changed.append(path.stat().st_mtime)
        return time.time() - max(changed) < STALE
    if not number.isdigit() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    if os.name == "nt":  # Windows synchronises neither folders nor files opened for reading
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sentence(error: OSError, parent: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk of {str(parent)!r} is full; free some space or choose another folder; nothing was left there."
    return f"Cannot write in {str(parent)!r}: {error.strerror or error}; nothing was written."


# The files of a checkpoint folder that say how data becomes inputs: of its processors, its tokenizer, and sentence-transformers.

FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_LIMIT, SENTENCE_LIMIT = "model_max_length", "max_seq_length"
"""Maximum tokens of a text: a field of the tokenizer's config, and one of sentence-transformers'."""

MODULES, SETTINGS_FILE = "modules.json", "config_sentence_transformers.json"
"""Files of a sentence-transformers folder: the list of its modules, and its settings."""
TRANSFORMER_SETTINGS = "sentence_*_config.json"
"""Files with the settings of a sentence-transformers Transformer; old versions put the architecture's name in the middle."""
SENTENCE_FIELDS = {
    **dict.fromkeys(("model_type", "default_prompt_name", "similarity_fn_name", "activation_function"), TEXT),
    **dict.fromkeys(("prompts", "__version__"), "an object of text"),
    **dict.fromkeys(
        (SENTENCE_LIMIT, "truncate_dim", "embedding_dimension", "word_embedding_dimension", "in_features", "out_features"), COUNT
    ),
    **dict.fromkeys(("do_lower_case", "include_prompt", "bias"), BOOLEAN),
    "pooling_mode": NAMES,
}
"""Fields of the small files of a sentence-transformers folder, except modules.json, and their types."""
EMBEDDINGS, RERANKER, TOKEN_VECTORS = "SentenceTransformer", "CrossEncoder", "MultiVectorEncoder"
"""The classes of sentence-transformers that load a folder."""


class ProcessorKind(NamedTuple):
    """A kind of processor: its names in processor_config.json, and the Auto class that loads it."""

    parts: tuple[str, ...]
    auto_class: str

    @property
    def noun(self) -> str:
        """For example "image processor"."""
        return self.parts[0].replace("_", " ")


IMAGE_PROCESSOR = ProcessorKind(("image_processor",), "AutoImageProcessor")
FEATURE_EXTRACTOR = ProcessorKind(("feature_extractor", "audio_processor"), "AutoFeatureExtractor")


@dataclass(frozen=True)
class ProcessorFile:
    """The place of the values of an image processor or a feature extractor.

    part: their name in processor_config.json; empty if they are in the separate file.
    """

    folder: Path
    kind: ProcessorKind
    part: str = ""

    @property
    def file(self) -> str:
        """The name of the file."""
        return PROCESSOR_FILE if self.part else FILE

    @classmethod
    def find(cls, folder: Path, kind: ProcessorKind) -> ProcessorFile | None:
        """The place that transformers reads; ``None`` if there is none.

        Raises:
            CheckpointError: a file is damaged.
        """
        parts = read_json_object(folder / PROCESSOR_FILE) if (folder / PROCESSOR_FILE).is_file() else {}
        part = next((name for name in kind.parts if isinstance(parts.get(name), dict)), None)
        if part is not None:
            return cls(folder, kind, part)
        if not (folder / FILE).is_file():
            return None
        read_json_object(folder / FILE)  # transformers would refuse a damaged one in other words
        return cls(folder, kind)

    @property
    def values(self) -> dict[str, Any]:
        """The values of the processor.

        Raises:
            CheckpointError: the file is damaged.
        """
        values = read_json_object(self.folder / self.file)
        return dict(values[self.part]) if self.part else values

    def with_values(self, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The name of the file, and its content with other values of this processor."""
        return {self.file: {**read_json_object(self.folder / self.file), self.part: dict(values)} if self.part else dict(values)}


def tokenizer_values(folder: Path) -> dict[str, Any]:
    """The values of the tokenizer's config in a folder; empty without one."""
    file = folder / TOKENIZER_CONFIG
    return read_json_object(file) if file.is_file() else {}


def limits_of(values: object) -> dict[str, int]:
    """The fields of a tokenizer's config that are a number of tokens."""
    fields = values.items() if isinstance(values, Mapping) else ()
    return {name: value for name, value in fields if isinstance(value, int) and not isinstance(value, bool) and value > 0}


def sentence_kind(folder: Path) -> str | None:
    """The class of sentence-transformers that loads a folder; ``None`` without modules."""
    if not (folder / MODULES).is_file():
        return None
    file = folder / SETTINGS_FILE
    return str(sentence_values(file).get("model_type", EMBEDDINGS)) if file.is_file() else EMBEDDINGS


def sentence_modules(folder: Path) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers folder, the transformer first; empty for other folders. All their small files are checked.

    Raises:
        CheckpointError: a file is damaged, or names a folder outside of ``folder``.
    """
    file = folder / MODULES
    modules = read_json(file) if file.is_file() else []
    sound = isinstance(modules, list) and all(isinstance(entry, dict) for entry in modules)
    texts = [entry.get(field) for entry in modules for field in ("path", "type")] if sound else [None]
    names = {repr(entry.get("name", number)) for number, entry in enumerate(modules)} if sound else ()
    if file.is_file() and not (modules and all(isinstance(text, str) for text in texts) and len(names) == len(modules)):
        raise CheckpointError(
            f"{str(file)!r} must hold a list of modules, each with a path, a type and another name; save the model again."
        )
    for module in modules:
        path = PurePosixPath(module["path"])
        if path.is_absolute() or ".." in path.parts:
            raise CheckpointError(
                f"{str(file)!r} names the folder {module['path']!r}, which lies outside of {str(folder)!r}; save the model again."
            )
        kind = module["type"].rpartition(".")[2]
        for settings in (folder / path).glob(TRANSFORMER_SETTINGS if kind == "Transformer" else "config.json"):
            sentence_values(settings)
    if modules and (folder / SETTINGS_FILE).is_file():
        sentence_values(folder / SETTINGS_FILE)
    return list(modules)


def sentence_values(file: Path) -> dict[str, Any]:
    """The values of a small file of a sentence-transformers folder.

    Raises:
        CheckpointError: the file is damaged, or a field has a type that sentence-transformers does not write.
    """
    values = read_json_object(file)
    flags = {name: BOOLEAN for name in values if name.startswith("pooling_mode_")}
    check_fields(values, {**SENTENCE_FIELDS, **flags}, repr(str(file)), "correct the file")
    return values


# Names of local files and folders in cards and reports, without their parent folders.

SOURCES = frozenset(("source", "model", "data", "tasks", "task_file", "validation", "teacher", "baseline", "output_dir", "destination"))
"""Fields of reports and logs that name a file, a folder or a Hub repository."""
_TASK = re.compile(r"[A-Za-z_]\w*=(?:\w+:)?")
"""The prefix of a task's data, NAME= or NAME=KIND:, as in NAME=KIND:DATA."""
_PATH = re.compile(r"(?:~[\w.-]*|\.{1,2}|[A-Za-z]:)?[/\\](?![/\\])")
"""The start of a path that cannot be a Hub name."""
_FILE = re.compile(r"\.(?:jsonl?|csv|tsv|txt|parquet|arrow|gguf|safetensors|bin|pt|onnx|ya?ml|md|zip|gz|bz2|xz|zst)", re.IGNORECASE)
"""File extensions. A relative path that ends in one is not a Hub name, even if the file no longer exists."""
_PATH_IN_TEXT = re.compile(rf"(?<![\w./\\~-]){_PATH.pattern}(?:[^\s/\\\"'`,;()\[\]{{}}<>]+[/\\])+(?=[^\s/\\])")
"""The folders of a path in a sentence."""


def public_name(source: str) -> str:
    """The name of a source in a card. Hub names and addresses stay; files and folders lose their parent folders.

    Args:
        source: as the user typed it, also as NAME=KIND:DATA.
    """
    if (task := _TASK.match(source)) is not None:
        return task[0] + public_name(source[task.end() :])
    is_path = _PATH.match(source) or _FILE.fullmatch(Path(source).suffix) or os.path.exists(source)
    is_name = not is_path and HUB_ID.fullmatch(source.partition(":")[0]) is not None
    is_address = "://" in source and not source.startswith("file:")
    return source if not source or is_name or is_address else _last(source)


def without_folders(value: Any, field: str = "") -> Any:
    """A value of a report or log, with every path reduced to its last name.

    Args:
        value: any value that JSON can hold.
        field: the name of its field. Relative paths are recognised in fields of :data:`SOURCES` only.
    """
    if isinstance(value, Mapping):
        return {_in_text(str(name)): without_folders(entry, str(name)) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(entry, "data" if field == "text" else field) for entry in value]  # a list in a field "text" names files
    if not isinstance(value, str):
        return value
    return public_name(value) if field in SOURCES else _in_text(value)


def _in_text(text: str) -> str:
    """A text without the folders of its paths. A text that starts like a path is one path, even with spaces."""
    return _last(text) if _PATH.match(text) else _PATH_IN_TEXT.sub("", text)


def _last(path: str) -> str:
    parts = [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else Path(path).expanduser().resolve().name or path
