"""Names of local files and folders in cards and reports, without their parent folders."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .hub_errors import HUB_ID

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
