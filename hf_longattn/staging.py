"""Build a folder or file next to its destination, and rename it once complete. Nobody sees a partial result."""

from __future__ import annotations

import contextlib
import errno
import glob
import itertools
import os
import platform
import re
import shutil
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from safetensors import SafetensorError

from .errors import CheckpointError, DestinationExistsError, LongAttentionError
from .reading import check_name

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
