"""Reads files of checkpoints safely, and writes files and folders completely or not at all.

Checkpoint files are read if they are regular, inside their folder and of a limited size. The types of their fields are
left to the libraries that read them. Output is written beside its destination and renamed once it is complete. A
refusal is a :class:`CheckpointError` of one sentence.
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
GRAPHS = {"onnx": "model.onnx", "torch": "model.pt2"}
"""Format of an exported graph -> its file in the folder."""
TAGS = ("hf_longattn", "long-context")
"""The tags of every long model on the Hub."""
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


# Files of a folder: which belong to a model, and which may be opened.

TOKENIZER_CONFIG = "tokenizer_config.json"
MODULES, SETTINGS_FILE = "modules.json", "config_sentence_transformers.json"
"""Files of a sentence-transformers folder: the list of its modules, and its settings."""
TRANSFORMER_SETTINGS = "sentence_*_config.json"
"""Files with the settings of a sentence-transformers Transformer; old versions put the architecture's name in the
middle."""
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
"""Names of the files beside the weights that belong to a model: configs, labels, tokenizer, templates, licence. No
other file is downloaded, copied or uploaded, except the card and weights."""
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
"""Names of all files that belong to a model, except its code and the pictures of its card."""
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
"""Names of further files that this package and a training write beside a model."""
NAMED_FILES = (
    ("*.index.json", "weight_map"),
    (TOKENIZER_CONFIG, "fast_tokenizer_files"),
    ("config.json", "configuration_files"),
    ("router_config.json", "types"),
)
"""Files that name other files of their folder, and the field with the names: a list, the keys of an object (modules
of a router) or its values (files of tensors)."""


def matcher(patterns: Iterable[str]) -> re.Pattern[str]:
    """A regular expression for the names that match one of ``patterns``, hidden ones too."""
    return re.compile("|".join(map(fnmatch.translate, patterns)))


SMALL_NAMES = matcher(SMALL_FILES)


def belongs(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file name matches one of ``patterns``. A hidden file never does."""
    return not name.startswith(".") and matcher(patterns).match(name) is not None


def check_checkpoint(folder: Path) -> None:
    """Check a checkpoint's folder before its files are loaded or copied: nothing in it may lead out of it.

    Raises:
        CheckpointError: a file is not a regular one, a link is broken or leads outside, a file other than weights has
            a second name outside (a hard link), or a file names another one that is not in its folder.
    """
    modules = [module["path"] for module in sentence_modules(folder) if module["path"]]
    names = {path for path in folder.iterdir() if SMALL_NAMES.match(path.name)}
    check_files(folder, [*folder.glob(SAFETENSORS), *folder.glob(PICKLED_WEIGHTS)])
    for inner in (*SIDECAR_FOLDERS, *modules):
        check_link(folder / inner, folder)
        names.update(path for path in (folder / inner).rglob("*") if path.is_symlink() or not path.is_dir())
    check_files(folder, names, hard_links=False)
    for home in ("", *modules):
        for pattern, field in NAMED_FILES:
            for file in (folder / home).glob(f"**/{pattern}" if home else pattern):
                named = read_json_object(file).get(field)
                if isinstance(named, dict):
                    named = [*named, *named.values()] if field == "types" else list(named.values())
                for name in named if isinstance(named, list) else ():
                    if isinstance(name, str) and (name in (".", "..") or re.search(r"[/\\]", name)):
                        raise CheckpointError(
                            f"{str(file)!r} names {shortened(name)!r}, but may only name files of the same folder; "
                            "download it again."
                        )


def check_files(folder: Path, paths: Iterable[Path], *, hard_links: bool = True) -> None:
    """Refuse anything but regular files that lie in a checkpoint's folder, without opening them.

    Args:
        folder: the checkpoint.
        paths: the files in it that may be read, copied or sent.
        hard_links: whether a file may have a second name outside of the folder.

    Raises:
        CheckpointError: a link that is broken or leads outside, or something that is not a regular file.
    """
    root = folder.resolve()
    for path in sorted(paths):
        check_link(path, folder)
        about = _check_regular(path)
        if hard_links or about.st_nlink == 1 or root not in path.resolve().parents:  # a blob of the Hub's cache
            continue
        names = (other for other in root.rglob("*") if not other.is_symlink())
        if sum(os.path.samestat(about, other.stat()) for other in names) < about.st_nlink:
            raise CheckpointError(
                f"{str(path)!r} is also the name of a file outside of its checkpoint (a hard link); replace it with a "
                "copy of that file."
            )


def check_link(path: Path, folder: Path) -> None:
    """Refuse a link that is broken or leads out of a checkpoint's folder, which would copy a local file into a result.

    Links of a snapshot in the Hub's cache may also lead to the repository's blobs.
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
    if root not in target.parents and not (
        root.parent.name == "snapshots" and root.parent.parent / "blobs" in target.parents
    ):
        raise CheckpointError(
            f"{str(path)!r} is a link to {str(target)!r}, outside of its checkpoint; replace it with a copy of that "
            "file."
        )


def _check_regular(path: Path) -> os.stat_result:
    """Refuse anything but a regular file. Opening a pipe, for example, would block."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        what = "a folder" if stat.S_ISDIR(about.st_mode) else "not a regular file"
        raise CheckpointError(f"{str(path)!r} is {what}; remove it, or give another file.")
    return about


# Text and JSON, within limits.

LARGEST_JSON = 256 * 2**20
"""Maximum size of a text file, in bytes. The index of the largest checkpoints has a few MB, a tokenizer tens of MB."""
LARGEST_CARD = 2 * 2**20
"""Maximum size of a model card, in bytes. The largest ones, with the scores of some hundred data sets, have 1 MB."""
MOST_LAYERS, MOST_LABELS = 1000, 1_000_000
"""Maximum number of modules in a stack, and of labels."""
LAYERS = re.compile(r"(layers?|groups|group_num|depths?|blocks|experts)$")
"""Fields of a config that count modules to build."""


def read_text(path: Path, largest: int = LARGEST_JSON) -> str:
    """The UTF-8 text of a regular file of at most `largest` bytes."""
    try:
        if (size := _check_regular(path).st_size) > largest:
            raise CheckpointError(
                f"{str(path)!r} has {size / 1e6:,.0f} MB, but at most {largest / 1e6:,.0f} MB are read."
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(encoding_sentence(path, error)) from error


def read_json(path: Path) -> Any:
    """The JSON in a file, whose text can be encoded as UTF-8."""
    text = read_text(path)
    try:  # transformers writes infinite numbers and NaN as {"__float__": "Infinity"}
        value = json.loads(
            text, object_hook=lambda values: float(values["__float__"]) if [*values] == ["__float__"] else values
        )
        if re.search(r"\\u[dD][89a-fA-F]", text):  # perhaps half of a surrogate pair
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
"""The field of ``config.json`` with the version of this package's fields, and the current version.

A new name, option or default of a mechanism needs a new version, because options that are not written have the
default.
"""
GENERIC_TYPE, GENERIC_CLASS = "long_generic_", "LongGeneric"
"""Prefixes of model type and class name of a plain architecture with mechanisms. Only this package registers them."""


def check_config(values: Mapping[str, Any]) -> None:
    """Refuse a ``config.json`` if it, or a nested config, has a version other than :data:`FORMAT` or would fill the
    memory.

    A missing version is accepted. The numbers of modules and labels are limited.
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
"""Maximum tokens of a text: a field of the tokenizer's config, and two of sentence-transformers', the second for
documents of a MultiVectorEncoder."""
EMBEDDINGS, RERANKER, TOKEN_VECTORS = "SentenceTransformer", "CrossEncoder", "MultiVectorEncoder"
"""The classes of sentence-transformers that load a folder."""


def sentence_class(folder: Path) -> str | None:
    """The class of sentence-transformers that loads a folder; ``None`` without modules."""
    if not (folder / MODULES).is_file():
        return None
    file = folder / SETTINGS_FILE
    if not file.is_file():
        return EMBEDDINGS
    return str(sentence_values(file).get("model_type", EMBEDDINGS))


def sentence_modules(folder: Path) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers folder, the transformer first; empty for other folders.

    Raises:
        CheckpointError: the list is damaged or names a folder outside of ``folder``, or the maximum length is not a
            number.
    """
    file = folder / MODULES
    if not file.is_file():
        return []
    modules = read_json(file)
    fields = [entry.get(field) for entry in modules for field in ("path", "type")] if isinstance(modules, list) else []
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
    """The values of a small file in a sentence-transformers folder. Checks that the maximum length is a number of
    tokens."""
    values = read_json_object(file)
    if type(values.get(SENTENCE_LIMIT)) not in (int, type(None)):
        raise CheckpointError(
            f"{str(file)!r} says {SENTENCE_LIMIT}={values[SENTENCE_LIMIT]!r:.60}, which must be a whole number."
        )
    return values


# Build a folder or a file next to its destination, and rename it once it is complete.

MACHINE = re.sub(r"[^A-Za-z0-9]", "_", platform.node()) or "unnamed"
"""This machine's name in the names of unfinished folders: on a shared file system, another machine's are left
alone."""
STAGES, ACTIVE = itertools.count(), set[Path]()
"""Numbers of this process's unfinished folders, so that its threads do not share one, and those folders."""
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a process to end. Without a handler, the process ends immediately."""


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """Raise ``SystemExit`` at a signal that asks the process to end. Unfinished files are then removed.

    Ctrl-C raises ``KeyboardInterrupt`` in the same way. Signals that are handled or ignored already are left alone. So
    are all signals outside the main thread, where no handler can be set.
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
    """The absolute path of a destination; links are not resolved."""
    return Path(os.path.abspath(Path(destination).expanduser()))


def check_destination(destination: Path, *sources: Path, overwrite: bool) -> None:
    """Refuse a destination that must not be written.

    Raises:
        CheckpointError: it exists, and `overwrite` is off or it is neither an empty nor a checkpoint folder.
        CheckpointError: it is a source, contains one, or lies within one.
    """
    resolved = Path(os.path.realpath(destination))  # Path.resolve raises for a link to itself
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
    if replaceable and (others := _no_model_files(destination)):
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
    """Hidden folders, and files that neither belong to a model nor are written beside one."""
    others = []
    for place, folders, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        hidden = [name for name in folders if name.startswith(".") and name != ".cache"]  # of a download
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [
            name
            for name in files
            if name not in (".gitattributes", ".lock") and not belongs(name, (*MODEL_FILES, *RECORDS))
        ]
        others += [str(inside / name) for name in (*hidden, *names)]
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
    """Refuse a folder that cannot be created or written in, before slow work. No file is left in it."""
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
"""Messages about a full disk, a quota, or a limit on file sizes: of the system, of torch ("basic_ios::clear: iostream
error"), and of numpy ("96 requested and 0 written")."""


def disk_is_full(error: BaseException) -> bool:
    """Whether an error, or one that caused it, is about a full disk. Libraries raise it without a number."""
    cause: BaseException | None = error
    while cause is not None and not any(words in str(cause) for words in FULL):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def check_space(folder: Path, needed: int) -> None:
    """Refuse a disk with fewer free bytes than needed, before slow work. torch ends the process if a disk is full."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if (free := shutil.disk_usage(existing).free) < needed:
        raise CheckpointError(
            f"The disk of {str(folder)!r} has {free / 1e6:,.1f} MB left, and {needed / 1e6:,.1f} MB are needed; free "
            "some space or choose another folder."
        )


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an error for a full disk, no permission, a mount point or a link to itself into one sentence."""
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
    """A new folder next to `destination`, renamed to it when the block succeeds. All its files get the mode of a new
    file.

    It is removed when the block fails or the process is asked to end. This machine's folders of killed runs are
    removed first. With `overwrite`, an existing destination is renamed aside and the new folder renamed into its
    place. A run killed between the two renames leaves the old folder aside, and the next run restores it.

    Raises:
        CheckpointError: the destination exists (again), or was created by another process; not enough disk space; or
            no permission.
    """
    parent = Path(os.path.realpath(destination.parent))
    name = destination.name
    new_parents = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    number = next(STAGES)
    stage, aside = (parent / f".{name}.{use}-{MACHINE}-{os.getpid()}-{number}" for use in ("partial", "replaced"))
    with ending_cleanly():  # also covers the removal of the stage
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
        except LongAttentionError as error:  # the message may name the stage, which is removed
            if str(stage) not in str(error):
                raise
            raise type(error)(str(error).replace(str(stage), str(destination))) from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            ACTIVE.difference_update((stage, aside))
            for folder in new_parents:  # parents of a result that failed
                with contextlib.suppress(OSError):  # not empty, or never created
                    folder.rmdir()


def _clean(parent: Path, name: str) -> None:
    """Remove folders of this machine's killed runs. Restore a destination that one of them renamed aside and did not
    replace. Anything else with such a name is left alone."""
    import psutil

    pattern = re.compile(rf"\.{re.escape(name)}\.(partial|replaced)-{MACHINE}-([0-9]{{1,9}})(-[0-9]{{1,9}})?")
    for leftover in sorted(parent.iterdir()):
        if (match := pattern.fullmatch(leftover.name)) is None:
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
    """A new file next to `file`, renamed to it when the block succeeds.

    The new file has the same extension. It is removed if the block fails. A link is replaced, not its target.

    Raises:
        CheckpointError: not enough disk space, or no permission.
    """
    # cut at the start of a character
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
    """Hold the lock ``file``, and remove it afterwards. The lock of a process that was killed is free.

    Raises:
        CheckpointError: another process holds it (``refusal`` is the message), or it cannot be written.
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
    """Write a complete UTF-8 file or nothing, by :func:`staged_file`."""
    with staged_file(file) as stage:
        stage.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write indented JSON. Bytes of a file name that are not UTF-8 become escapes of JSON."""
    path.write_text(
        json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace"
    )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Names of local files and folders in cards, without their parent folders.


def public_name(source: str) -> str:
    """The name of a source in a card. Hub names and addresses do not change; local paths lose their parent folders.

    Args:
        source: the source as typed by the user, possibly NAME=KIND:DATA.
    """
    if (task := re.match(r"[A-Za-z_]\w*=(?:\w+:)?", source)) is not None:
        return task[0] + public_name(source[task.end() :])
    is_file = os.path.exists(source) or Path(source).suffix in (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")
    is_name = not is_file and HUB_ID.fullmatch(source.partition(":")[0]) is not None
    if not source or is_name or ("://" in source and not source.startswith("file:")):
        return source
    parts = [part for part in re.split(r"[/\\]", source) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else Path(source).expanduser().resolve().name
