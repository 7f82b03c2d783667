"""Read files of checkpoints safely, and write files and folders completely or not at all.

A file of a checkpoint is read only if it is a regular file of limited size inside the checkpoint's folder. The
libraries that use its fields check their types. Output is written beside its destination, and renamed to it when it is
complete. A file or destination is refused by a :class:`CheckpointError` of one sentence.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import itertools
import json
import math
import os
import platform
import re
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .errors import CheckpointError, LongAttentionError, encoding_sentence, in_a_line, listed, shortened

CONVERSION_REPORT = "conversion_report.json"
GRAPHS = {"onnx": "model.onnx", "openvino": "openvino_model.xml", "torch": "model.pt2"}
"""Format of an exported graph -> its file in the folder."""
TAGS = ("hf_longattn", "long-context")
"""Tags in the model card of every converted model."""
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


# The files of a folder that belong to a model, and the checks before they are opened.

TOKENIZER_CONFIG = "tokenizer_config.json"
MODULES, SETTINGS_FILE = "modules.json", "config_sentence_transformers.json"
"""Files of a sentence-transformers folder: the list of its modules, and its settings."""
TRANSFORMER_SETTINGS = "sentence_*_config.json"
"""Files with the settings of the Transformer module of sentence-transformers. Its old versions put the architecture's
name in place of the star, such as ``sentence_bert_config.json``."""
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")
SIDECARS = (
    "config.json",
    "*.index.json",
    "generation_config.json",
    "long_config.json",
    "adapter_config.json",
    "ort_config.json",
    "openvino_config.json",
    "quant*_config.json",
    "modelcard.json",
    "id2label.json",
    "label*.json",
    "label*.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "*.jinja",
    "*tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "*_vocab.json",
    "vocab*.txt",
    "merges.txt",
    "dict.txt",
    "emoji.json",
    "normalizer.json",
    "byte_maps.json",
    "word_*.json",
    "tekken.json",
    "*.model",
    "*.tokenizer",
    "*.tiktoken",
    "*.spm",
    "*.codes",
    MODULES,
    SETTINGS_FILE,
    TRANSFORMER_SETTINGS,
    "router_config.json",
    "wordembedding_config.json",
    "lstm_config.json",
    "cnn_config.json",
    "idf.json",
    *LICENCES,
)
"""Names of the small files that belong to a model: configs, labels, tokenizer, templates and licence. Apart from them,
only the card and the weights are downloaded, copied or uploaded."""
SMALL_FILES = (*SIDECARS, "README.md")
SIDECAR_FOLDERS = ("additional_chat_templates",)
SAFETENSORS, PICKLED_WEIGHTS = "*.safetensors", "pytorch_model*.bin"
WEIGHTS = (
    SAFETENSORS,
    PICKLED_WEIGHTS,
    "adapter_model.bin",
    "*.onnx",
    "*.onnx.data",
    "*.onnx_data*",
    "*.pt2",
    "*.pt2.data",
    "*.gguf",
    "openvino_model*.bin",
    "openvino_model*.xml",
    "tf_model*.h5",
    "flax_model*.msgpack",
    "rust_model.ot",
)
TEXTS = ("README*.md", "USE_POLICY*", "CITATION*", "COPYING*")
MODEL_FILES = (*SIDECARS, *TEXTS, *WEIGHTS)
"""Names of all files that belong to a model, without its Python code and the pictures of its card."""
RECORDS = (
    "*_report.json",
    "*_results.json",
    "*predictions.json",
    "null_odds.json",
    "training_log.json",
    "trainer_state.json",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "events.out.tfevents.*",
    "modeling_long_*.py",
)
"""Names of the files that this package and a training write into a model's folder, beside :data:`MODEL_FILES`."""
NAMED_FILES = (
    ("*.index.json", "weight_map"),
    (TOKENIZER_CONFIG, "fast_tokenizer_files"),
    ("config.json", "configuration_files"),
    ("router_config.json", "types"),
)
"""Files that name other files of their folder, and the field that holds the names.

The field is a list of names, or an object. The names are the object's values, such as ``weight_map``'s files of
tensors. In a router's ``types``, the keys are names, too.
"""


def matcher(patterns: Iterable[str]) -> re.Pattern[str]:
    """A regular expression for file names that match one of the glob ``patterns``. Names may begin with a dot."""
    return re.compile("|".join(map(fnmatch.translate, patterns)))


SMALL_NAMES = matcher(SMALL_FILES)


def belongs(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file name matches one of the glob ``patterns``, and does not begin with a dot."""
    return not name.startswith(".") and matcher(patterns).match(name) is not None


def check_checkpoint(folder: Path) -> None:
    """Check a checkpoint's folder before its files are loaded or copied: no file of it may lead out of the folder.

    Raises:
        CheckpointError: a file is not a regular file, or it names a file in another folder.
        CheckpointError: a link is broken or leads out of the folder.
        CheckpointError: a file other than weights has a second name outside of the folder (a hard link).
    """
    modules = [module["path"] for module in sentence_modules(folder) if module["path"]]
    check_files(folder, [*folder.glob(SAFETENSORS), *folder.glob(PICKLED_WEIGHTS)])
    small = {path for path in folder.iterdir() if SMALL_NAMES.match(path.name)}
    for inner in (*SIDECAR_FOLDERS, *modules):
        check_link(folder / inner, folder)
        small.update(path for path in (folder / inner).rglob("*") if path.is_symlink() or not path.is_dir())
    check_files(folder, small, hard_links=False)

    # files that name other files
    for place in ("", *modules):
        for pattern, field in NAMED_FILES:
            for file in (folder / place).glob(f"**/{pattern}" if place else pattern):
                value = read_json_object(file).get(field)
                names = value if isinstance(value, list) else []
                if isinstance(value, dict):
                    names = list(value.values())
                    if field == "types":
                        names = [*value, *names]
                for name in names:
                    if isinstance(name, str) and (name in (".", "..") or re.search(r"[/\\]", name)):
                        raise CheckpointError(
                            f"{str(file)!r} names {shortened(name)!r}, but may only name files of the same folder; "
                            "download it again."
                        )


def check_files(folder: Path, paths: Iterable[Path], *, hard_links: bool = True) -> None:
    """Check that files of a checkpoint are regular files inside its folder. The files are not opened.

    Args:
        folder: the checkpoint.
        paths: the files in it that may be read, copied or uploaded.
        hard_links: whether a file may have a second name outside of the folder.

    Raises:
        CheckpointError: a path is a link that is broken or leads out of the folder, or it is not a regular file.
        CheckpointError: a file has a second name outside of the folder, and ``hard_links`` is False.
    """
    root = folder.resolve()
    for path in sorted(paths):
        check_link(path, folder)
        status = _check_regular(path)
        # only a link into the blobs of the Hub's cache may lead out of the folder
        if hard_links or status.st_nlink == 1 or root not in path.resolve().parents:
            continue
        others = (other for other in root.rglob("*") if not other.is_symlink())
        names_inside = sum(os.path.samestat(status, other.stat()) for other in others)
        if names_inside < status.st_nlink:
            raise CheckpointError(
                f"{str(path)!r} is also the name of a file outside of its checkpoint (a hard link); replace it with a "
                "copy of that file."
            )


def check_link(path: Path, folder: Path) -> None:
    """Refuse a link that is broken or leads out of a checkpoint's folder. It could copy a private file into a result.

    A link in a snapshot of the Hub's cache may lead to the repository's blobs.
    """
    if not path.is_symlink():
        return
    root = folder.resolve()
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a loop raises either, depending on the version of Python
        raise CheckpointError(
            f"{str(path)!r} is a link to {os.readlink(path)!r}, which does not exist; put a file there."
        ) from error
    in_cache = root.parent.name == "snapshots" and root.parent.parent / "blobs" in target.parents
    if root not in target.parents and not in_cache:
        raise CheckpointError(
            f"{str(path)!r} is a link to {str(target)!r}, outside of its checkpoint; replace it with a copy of that "
            "file."
        )


def _check_regular(path: Path) -> os.stat_result:
    """The status of a regular file. A folder, pipe or device is refused: opening a pipe, for example, would block."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise CheckpointError(f"{str(path)!r} is {kind}; remove it, or give another file.")
    return status


# Reading text and JSON of limited size.

LARGEST_JSON = 256 * 2**20
"""Maximum size of a text file, in bytes. The index of the largest checkpoints has a few MB, a tokenizer tens of MB."""
LARGEST_CARD = 2 * 2**20
"""Maximum size of a model card, in bytes. The largest cards, with scores on some hundred data sets, have 1 MB."""
MOST_LAYERS, MOST_LABELS = 1000, 1_000_000
"""Maximum of a config's numbers of layers, blocks or experts, and maximum number of labels."""
LAYERS = re.compile(r"(layers?|groups|group_num|depths?|blocks|experts)$")
"""Fields of a config that count the modules to build, such as ``num_hidden_layers``."""


def read_text(path: Path, largest: int = LARGEST_JSON) -> str:
    """The UTF-8 text of a regular file of at most `largest` bytes."""
    try:
        size = _check_regular(path).st_size
        if size > largest:
            raise CheckpointError(
                f"{str(path)!r} has {size / 1e6:,.0f} MB, but at most {largest / 1e6:,.0f} MB are read."
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(encoding_sentence(path, error)) from error


def read_json(path: Path) -> Any:
    """The value in a JSON file. Invalid JSON, and strings that cannot be encoded as UTF-8, are refused."""

    def infinite(values: dict[str, Any]) -> Any:
        # transformers writes infinite numbers and NaN as {"__float__": "Infinity"}
        return float(values["__float__"]) if [*values] == ["__float__"] else values

    text = read_text(path)
    try:
        value = json.loads(text, object_hook=infinite)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # an escaped surrogate; encoding fails without its other half
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} is not valid JSON ({in_a_line(error)}).") from error
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{str(path)!r} must contain a JSON object, not {type(value).__name__}.")
    return value


# config.json.

FORMAT_FIELD, FORMAT = "long_attention_format", 1
"""The field of ``config.json`` that tells the version of this package's fields, and the current version.

Options that are not written have their defaults. A new default of a mechanism's option therefore needs a new version,
and so does a new mechanism or option.
"""
GENERIC_TYPE, GENERIC_CLASS = "long_generic_", "LongGeneric"
"""Prefixes of model type and class name for an architecture without Long classes, converted with ``--generic``. Only
this package registers them with transformers."""


def check_config(values: Mapping[str, Any]) -> None:
    """Check the version and the sizes in a ``config.json``, and in the configs inside it.

    Raises:
        CheckpointError: the version is not :data:`FORMAT`. A missing version is accepted.
        CheckpointError: there are so many layers or labels that building the model would fill the memory.
    """
    written = values.get(FORMAT_FIELD, FORMAT)
    if type(written) is not int or written != FORMAT:
        raise CheckpointError(
            f"config.json says {FORMAT_FIELD}={written!r}, but this version of hf_longattn reads format {FORMAT}; "
            "install the version that wrote it, or convert the model again."
        )
    for field, value in values.items():
        limit = math.inf
        if field == "num_labels":
            limit = MOST_LABELS
        elif LAYERS.search(str(field)):
            limit = MOST_LAYERS
        for count in value if isinstance(value, list) else [value]:
            if limit < math.inf and isinstance(count, int | float) and not count <= limit:  # also NaN
                raise CheckpointError(f"config.json says {field}={count}, but at most {limit} are built.")
        if isinstance(value, Mapping) and not str(field).endswith(("long_attention", "2id", "2label")):
            check_config(value)


def named_class(values: Mapping[str, Any], default: str) -> str:
    names = values.get("architectures")
    return str(names[0]) if isinstance(names, list) and names and names[0] not in (None, "") else default


def is_long(values: Mapping[str, Any]) -> bool:
    return any("long_attention" in part for part in (values, *values.values()) if isinstance(part, Mapping))


def is_generic(values: Mapping[str, Any]) -> bool:
    return str(values.get("model_type")).startswith(GENERIC_TYPE)


# Files of tokenizers, processors and sentence-transformers.

TOKENIZER_LIMIT, SENTENCE_LIMIT, DOCUMENT_LIMIT = "model_max_length", "max_seq_length", "document_length"
"""Fields with the maximum number of tokens in a text. The first is in the tokenizer's config, the others are in
settings of sentence-transformers. The third is for the documents of a MultiVectorEncoder."""
EMBEDDINGS, RERANKER, TOKEN_VECTORS = "SentenceTransformer", "CrossEncoder", "MultiVectorEncoder"
"""Names of the classes of sentence-transformers that load a folder."""


def sentence_class(folder: Path) -> str | None:
    """Name of the sentence-transformers class that loads a folder; ``None`` for a folder without ``modules.json``."""
    if not (folder / MODULES).is_file():
        return None
    file = folder / SETTINGS_FILE
    if not file.is_file():
        return EMBEDDINGS
    return str(sentence_values(file).get("model_type", EMBEDDINGS))


def sentence_modules(folder: Path) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers folder, the transformer first; empty for other folders.

    Each module is a mapping with ``path``, its folder ("" for ``folder`` itself), and ``type``, the name of its class.

    Raises:
        CheckpointError: the list is damaged or names a folder outside of ``folder``, or the maximum length is not a
            number.
    """
    file = folder / MODULES
    if not file.is_file():
        return []
    modules = read_json(file)
    fields = []
    if isinstance(modules, list):
        fields = [entry.get(field) for entry in modules for field in ("path", "type")]
    if not fields or not all(isinstance(field, str) for field in fields):
        raise CheckpointError(
            f"{str(file)!r} must hold a list of modules, each with a path and a type; save the model again."
        )
    for module in modules:
        path = PurePosixPath(module["path"])
        if path.is_absolute() or ".." in path.parts:
            raise CheckpointError(
                f"{str(file)!r} names the folder {str(path)!r}, which lies outside of {str(folder)!r}; save it again."
            )
        for place in {path, *path.parents} - {PurePosixPath(".")}:
            check_link(folder / place, folder)
        for settings in (folder / path).glob(TRANSFORMER_SETTINGS):
            sentence_values(settings)
        module["path"] = "" if path == PurePosixPath(".") else str(path)
    return list(modules)


def sentence_values(file: Path) -> dict[str, Any]:
    """The values of a settings file of sentence-transformers. Its maximum length must be a whole number, or unset."""
    values = read_json_object(file)
    if type(values.get(SENTENCE_LIMIT)) not in (int, type(None)):
        raise CheckpointError(
            f"{str(file)!r} says {SENTENCE_LIMIT}={values[SENTENCE_LIMIT]!r:.60}, but it must be a whole number."
        )
    return values


# Building a folder or a file next to its destination, and renaming it when it is complete.

MACHINE = re.sub(r"[^A-Za-z0-9]", "_", platform.node()) or "unnamed"
"""This machine's name, which is part of the names of its unfinished folders. On a shared file system, a machine does
not remove the folders of others."""
STAGES = itertools.count()
"""Numbers for the names of unfinished folders, so that threads of this process do not share a folder."""
ACTIVE = set[Path]()
"""The folders that this process is building."""
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a process to end. Without a handler, the process ends at once, and leaves unfinished files."""


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """Raise ``SystemExit`` when a signal asks the process to end, so that unfinished files are removed.

    Signals that the program already handles or ignores are left alone. Outside the main thread, Python allows no
    handlers, so nothing changes there.
    """
    main = threading.current_thread() is threading.main_thread()
    handled = [number for number in ENDING if main and signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:
        for ending in handled:  # a second signal must not interrupt the removal of files
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
    """The absolute path of a destination. A link stays a link."""
    return Path(os.path.abspath(Path(destination).expanduser()))


def check_destination(destination: Path, *sources: Path, overwrite: bool) -> None:
    """Refuse a destination that must not be written.

    Raises:
        CheckpointError: it exists, and `overwrite` is False.
        CheckpointError: it exists, but is neither an empty folder nor a checkpoint.
        CheckpointError: it is one of `sources`, contains one, or lies within one.
    """
    resolved = Path(os.path.realpath(destination))  # Path.resolve would raise for a link to itself
    for source in sources:
        origin = Path(os.path.realpath(source))
        if origin == resolved or resolved in origin.parents or origin in resolved.parents:
            raise CheckpointError(
                f"The destination {str(destination)!r} and the source {str(source)!r} overlap; choose another."
            )
    if not os.path.lexists(destination):
        return
    if not overwrite:
        raise CheckpointError(f"{str(destination)!r} already exists; choose another folder or add --overwrite.")
    replaceable = destination.is_dir() and not destination.is_symlink()
    others = _no_model_files(destination) if replaceable else []
    if others:
        raise CheckpointError(
            f"{str(destination)!r} holds {listed(others)}, which no model folder has, so --overwrite does not replace "
            "it; move that away, or choose another folder."
        )
    if not replaceable or (any(destination.iterdir()) and not (destination / "config.json").is_file()):
        raise CheckpointError(
            f"{str(destination)!r} is not a checkpoint folder, so --overwrite does not replace it; choose another "
            "folder."
        )


def _no_model_files(folder: Path) -> list[str]:
    """Relative paths of the hidden folders in ``folder``, and of files that do not belong to a model or a training."""
    others = []
    for place, folders, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        for name in folders:
            if name.startswith(".") and name != ".cache":  # a download from the Hub leaves .cache
                others.append(str(inside / name))
        folders[:] = [name for name in folders if not name.startswith(".")]  # os.walk does not enter the removed ones
        for name in files:
            if name not in (".gitattributes", ".lock") and not belongs(name, (*MODEL_FILES, *RECORDS)):
                others.append(str(inside / name))
    return others


def check_new_file(file: Path) -> None:
    """Refuse a file that exists, or whose folder is missing or not writable."""
    if os.path.lexists(file):
        raise CheckpointError(f"{str(file)!r} already exists; choose another file.")
    if not file.absolute().parent.is_dir():
        raise CheckpointError(
            f"The folder {str(file.absolute().parent)!r} does not exist; make it, or choose another file."
        )
    check_writable(file.parent)


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be created or written in. No file is left in it."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    with disk_errors(existing), tempfile.TemporaryFile(dir=existing):
        pass


FULL = (
    os.strerror(errno.ENOSPC),
    os.strerror(errno.EDQUOT),
    os.strerror(errno.EFBIG),
    "PytorchStreamWriter failed writing file",
    "iostream",
    "problem writing element",
    "requested and",
)
"""Parts of error messages about a full disk, a quota, or a limit on file sizes. The first three are the system's. The
others are from torch ("basic_ios::clear: iostream error") and numpy ("96 requested and 0 written")."""


def disk_is_full(error: BaseException) -> bool:
    """Whether an error, or an error that caused it, is about a full disk. Only the messages are compared, because
    libraries raise errors without an ``errno``."""
    cause: BaseException | None = error
    while cause is not None and not any(words in str(cause) for words in FULL):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def check_space(folder: Path, needed: int) -> None:
    """Refuse a disk with fewer than ``needed`` free bytes. On a full disk, torch would end the process."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CheckpointError(
            f"The disk of {str(folder)!r} has {free / 1e6:,.1f} MB left, and {needed / 1e6:,.1f} MB are needed; free "
            "some space or choose another folder."
        )


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an error about a full disk or a path that cannot be written into a :class:`CheckpointError`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if disk_is_full(error):
            raise CheckpointError(
                f"The disk of {str(folder)!r} is full; free some space or choose another folder; nothing was left "
                "there."
            ) from error
        if number in (
            errno.EACCES,
            errno.EROFS,
            errno.EPERM,
            errno.EBUSY,
            errno.ELOOP,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.ENAMETOOLONG,
        ):
            raise CheckpointError(
                f"Cannot write in {str(folder)!r}: {os.strerror(number)}; nothing was written."
            ) from error
        raise


@contextlib.contextmanager
def staged_folder(destination: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new folder next to `destination`. When the block ends, the folder is renamed to `destination`.

    The folder is removed when the block raises an error or the process is asked to end. Unfinished folders of this
    machine's killed runs are removed first. All files in the folder get the permissions of a new file.

    With `overwrite`, an existing destination is renamed to a hidden folder, and removed when the new folder has its
    name. If a run is killed between the two renames, the next run restores the old folder.

    Raises:
        CheckpointError: the destination exists, or another process created it meanwhile.
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    parent = Path(os.path.realpath(destination.parent))
    name = destination.name
    new_parents = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    number = next(STAGES)
    stage, aside = (parent / f".{name}.{use}-{MACHINE}-{os.getpid()}-{number}" for use in ("partial", "replaced"))
    with ending_cleanly():  # the outermost block, since a signal must not interrupt the removal of the stage either
        ACTIVE.update((stage, aside))
        try:
            with disk_errors(parent):
                parent.mkdir(parents=True, exist_ok=True)
                _clean(parent, name)
                if os.path.lexists(destination) and not overwrite:
                    raise CheckpointError(
                        f"{str(destination)!r} exists: a run that was ended had set it aside, and it is back now; "
                        "choose another folder or add --overwrite."
                    )
                stage.mkdir()
                yield stage

                mode = stat.S_IMODE(stage.stat().st_mode)  # safetensors writes files that only their owner can read
                for path in [*stage.rglob("*"), stage]:
                    path.chmod(mode if path.is_dir() else mode & 0o666)
                    _sync(path)

                # two renames; if the second fails, the old folder gets its name back
                if os.path.lexists(destination):
                    if not overwrite:
                        raise CheckpointError(
                            f"{str(destination)!r} was created by another process; choose another folder or add "
                            "--overwrite."
                        )
                    os.rename(destination, aside)
                try:
                    os.rename(stage, destination)
                except OSError:
                    if aside.exists():
                        os.rename(aside, destination)
                    raise
                shutil.rmtree(aside, ignore_errors=True)
                _sync(parent)
        except LongAttentionError as error:
            if str(stage) not in str(error):
                raise
            # the message names the stage, which will be removed: name the destination instead
            raise type(error)(str(error).replace(str(stage), str(destination))) from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            ACTIVE.difference_update((stage, aside))
            for folder in new_parents:  # after an error, they are empty
                with contextlib.suppress(OSError):  # a finished result is in them, or they were never created
                    folder.rmdir()


def _clean(parent: Path, name: str) -> None:
    """Remove folders that killed runs of this machine left in ``parent``, where they wrote the destination ``name``.

    If a killed run renamed the destination and did not replace it, the destination is restored. Folders of running
    processes, links and files are left alone.
    """
    import psutil

    pattern = re.compile(rf"\.{re.escape(name)}\.(partial|replaced)-{MACHINE}-([0-9]{{1,9}})(-[0-9]{{1,9}})?")
    for leftover in sorted(parent.iterdir()):
        match = pattern.fullmatch(leftover.name)
        if match is None:
            continue
        process = int(match[2])
        if leftover in ACTIVE or (process != os.getpid() and psutil.pid_exists(process)):
            continue
        if leftover.is_symlink() or not leftover.is_dir():
            continue
        if match[1] == "replaced" and not os.path.lexists(parent / name):
            os.rename(leftover, parent / name)
        else:
            shutil.rmtree(leftover)


@contextlib.contextmanager
def staged_file(file: Path) -> Iterator[Path]:
    """A new file next to `file`, with the same extension. When the block ends, the new file is renamed to `file`.

    The new file is removed if the block raises an error. If `file` is a link, the link is replaced, not its target.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    # the last 100 bytes of the name, without the rest of a UTF-8 character that the cut divides
    ending = os.fsdecode(os.fsencode(file.name)[-100:].lstrip(bytes(range(0x80, 0xC0))))
    stage = file.absolute().with_name(f".partial-{MACHINE}-{os.getpid()}-{ending}")
    try:
        with ending_cleanly(), disk_errors(stage.parent):
            yield stage
            _sync(stage)
            os.replace(stage, file)
    finally:
        stage.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(file: Path, refusal: str) -> Iterator[None]:
    """Hold a lock on ``file``, and remove the file afterwards. The system frees the lock of a killed process.

    Raises:
        CheckpointError: another process holds the lock (``refusal`` is the message), or the file cannot be written.
    """
    lock = FileLock(file, timeout=0)
    try:
        with disk_errors(file.parent):
            lock.acquire()
    except Timeout as error:
        raise CheckpointError(refusal) from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def write_text(file: Path, text: str) -> None:
    """Write a UTF-8 file by :func:`staged_file`: completely or not at all."""
    with staged_file(file) as stage:
        stage.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write indented JSON. A file name's bytes that are not UTF-8 are written as escapes of JSON."""
    path.write_text(
        json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace"
    )


def _sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Names of local files and folders in model cards.


def public_name(source: str) -> str:
    """The name of a model or data set for a model card, which may be published.

    Local paths lose their parent folders. Names on the Hub and web addresses do not change.

    Args:
        source: a path, Hub name or address as typed by the user. In a multitask training, it is NAME=KIND:DATA.
    """
    task = re.match(r"[A-Za-z_]\w*=(?:\w+:)?", source)
    if task is not None:
        return task[0] + public_name(source[task.end() :])
    is_file = os.path.exists(source) or Path(source).suffix in (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")
    is_name = not is_file and HUB_ID.fullmatch(source.partition(":")[0]) is not None
    if not source or is_name or ("://" in source and not source.startswith("file:")):
        return source
    parts = [part for part in re.split(r"[/\\]", source) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else Path(source).expanduser().resolve().name
