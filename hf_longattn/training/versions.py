"""The versions that a training log states."""

from __future__ import annotations

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Python and the libraries that decide a run."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers", "datasets")}}
