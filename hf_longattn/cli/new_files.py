"""Files that a command writes: checked before the work begins, written whole or not at all, and never over another."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError, DestinationExistsError
from ..reading import check_name

__all__ = ["check_new", "write_new"]


def check_new(file: Path) -> None:
    """Refuse a file that exists, or whose folder does not."""
    check_name(file)
    if os.path.lexists(file):
        raise DestinationExistsError(f"{str(file)!r} already exists; choose another file.")
    if not file.absolute().parent.is_dir():
        raise CheckpointError(f"The folder {str(file.absolute().parent)!r} does not exist; make it, or choose another file.")


def write_new(file: Path, text: str) -> None:
    """Write a whole file, or nothing; an existing one is kept."""
    stage = file.absolute().with_name(f".{file.name[:100]}.partial-{os.getpid()}")
    try:
        stage.write_text(text, encoding="utf-8")
        if os.path.lexists(file):
            raise DestinationExistsError(f"{str(file)!r} was created by another process; choose another file.")
        stage.rename(file)
    finally:
        stage.unlink(missing_ok=True)
