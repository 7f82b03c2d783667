"""Where the files of the running package come from, and which of them are not as they were published."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import __version__

__all__ = ["Provenance", "provenance"]

DISTRIBUTION = "hf-longattn"


@dataclass(frozen=True)
class Provenance:
    """Attributes:
    origin: readable, for example "hf_longattn 0.1.0, git commit 0123456789ab".
    modified: files that differ from it.
    """

    origin: str
    modified: tuple[Path, ...]


def provenance(files: Iterable[Path]) -> Provenance | None:
    """Compare files of this package with the record of the installed distribution or, in a checkout, with git's last commit.

    Args:
        files: absolute paths.

    Returns:
        ``None`` when neither knows them.
    """
    asked = [path.resolve() for path in files]
    return _of_distribution(asked) or _of_checkout(asked)


def _of_distribution(files: list[Path]) -> Provenance | None:
    try:
        recorded = importlib.metadata.distribution(DISTRIBUTION).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    hashes = {Path(str(file.locate())).resolve(): file.hash for file in recorded if file.hash is not None}
    if not any(path in hashes for path in files):
        return None
    modified = []
    for path in files:
        known = hashes.get(path)
        if known is None or _digest(path, known.mode) != known.value:
            modified.append(path)
    return Provenance(f"hf_longattn {__version__}", tuple(modified))


def _digest(path: Path, mode: str) -> str:
    return base64.urlsafe_b64encode(hashlib.new(mode, path.read_bytes()).digest()).decode().rstrip("=")


def _of_checkout(files: list[Path]) -> Provenance | None:
    if not files:
        return None
    folder, names = files[0].parent, [str(path) for path in files]
    commit, tracked = _git(folder, "rev-parse", "HEAD"), _git(folder, "ls-files", "--full-name", "--", *names)
    if commit is None or tracked is None or not tracked:
        return None
    top = Path((_git(folder, "rev-parse", "--show-toplevel") or "").strip()).resolve()
    known = {top / name for name in tracked.splitlines()}
    changed = {top / name for name in (_git(folder, "diff", "--name-only", "HEAD", "--", *names) or "").splitlines()}
    modified = tuple(path for path in files if path not in known or path in changed)
    return Provenance(f"hf_longattn {__version__}, git commit {commit.strip()[:12]}", modified)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    return done.stdout if done.returncode == 0 else None
