"""The files of a source are somebody else's: what may be opened among them, and JSON that may hold anything."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...errors import CheckpointError

__all__ = ["check_files", "read_json_object"]

LARGEST_JSON = 256 * 2**20
"""Bytes; the index of the largest checkpoints takes a few millions, a tokenizer some tens."""


def check_files(folder: Path, patterns: Iterable[str], folders: Iterable[str] = ()) -> None:
    """Look at every file of a source that may be read or copied, without opening it.

    Links are followed inside the folder, and from a snapshot of the Hub's cache into the files that belong to it. One that leads anywhere
    else would carry a file of this machine into the result, and with it to the Hub.

    Args:
        folder: of the source.
        patterns: of names in the folder itself.
        folders: in it, taken with everything below them.

    Raises:
        CheckpointError: a link that is broken or leads outside, something that is no regular file, or no permission to read.
    """
    homes = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        homes.append(folder.resolve().parent.parent / "blobs")
    folders = list(folders)
    for path in (folder / name for name in folders):
        if path.is_symlink():
            _check_link(path, homes)
    for path in sorted(_chosen(folder, patterns, folders)):
        if path.is_symlink():
            _check_link(path, homes)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{str(path)!r} is a folder, where a file is expected; move it away.")
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{str(path)!r} is no regular file; move it away.")
        if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            raise CheckpointError(f"{str(path)!r} cannot be read; give yourself the permission to.")


def _chosen(folder: Path, patterns: Iterable[str], folders: Iterable[str]) -> Iterator[Path]:
    try:
        for pattern in dict.fromkeys(patterns):
            yield from folder.glob(pattern)
        for name in folders:
            yield from (path for path in (folder / name).rglob("*") if path.is_symlink() or not path.is_dir())
    except OSError as error:
        raise CheckpointError(f"The folder {str(folder)!r} cannot be read: {error.strerror}.") from error


def _check_link(path: Path, homes: list[Path]) -> None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a loop is either, by version of Python
        raise CheckpointError(f"{str(path)!r} is a link to {os.readlink(path)!r}, which leads to no file; put the file there.") from error
    if not any(home in target.parents for home in homes):
        raise CheckpointError(
            f"{str(path)!r} is a link to {str(target)!r}, outside of its checkpoint; put a copy of that file in its place."
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: it is not JSON, no object, or too large to be a checkpoint's; or it cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise CheckpointError(f"{str(path)!r} is too large for a JSON file of a checkpoint: {size / 1e6:,.0f} MB.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"{str(path)!r} is not valid JSON (nested too deeply).") from None
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{str(path)!r} must hold a JSON object, but holds {type(value).__name__}.")
    return value
