"""What differs between the installed package and a copy bundled with a model: the names it registers, and how its modules are found.

A model that was pushed with its code (:func:`hf_longattn.hub.bundle_remote_code`) brings a copy of this package, perhaps of another
version. Each copy enters the tables of the process (transformers' attention functions and cache layers, torch's operators) under its own
names, so that several of them work side by side.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

PLAIN_BACKEND = "longattn"
"""What users type as ``attn_implementation``; it means the copy that the model comes from."""

COPY = "" if __package__ == "hf_longattn" else f"_{hashlib.sha256(str(__package__).encode()).hexdigest()[:8]}"
BACKEND = PLAIN_BACKEND + COPY
"""The name of the attention function and the mask function, and the prefix of the names of cache layer types."""
OPERATORS = f"hf_longattn{COPY}"
"""The namespace of torch operators."""
LOGGER = "transformers.hf_longattn"
"""Below transformers' logger, whose verbosity applies."""
PREDICTIONS = ("predictions.json", "predictions.txt", "*_predictions.json", "null_odds.json")
"""Files in which a training writes its answers to the validation data, some of which quote these data."""
TAGS = ("hf_longattn", "long-context")
"""The tags of every long model on the Hub."""
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64")
"""Endings of the names of files that are read as sound."""
FRAMES_SUFFIX = ".npy"
"""The ending of the name of an array of frames."""
CODEC_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif")
"""Endings of the names of video files, which hold no frames without a decoder; not .ts, which is TypeScript's, too."""
VIDEO_SUFFIXES = (FRAMES_SUFFIX, *CODEC_SUFFIXES)
"""Endings of the names of files that are read, or refused, as videos."""

BEFORE_UPLOAD: dict[str, Callable[[str, str, str], None]] = {}
"""Functions of a saved model's folder, its repository and what it was loaded from, called before it is pushed. The installed package enters
that of the model's card; a bundled copy has none."""

CONVERSION_REPORT = "conversion_report.json"
"""The file of a converted checkpoint that says how it was made."""

FLAT_FILES: dict[str, dict[str, str]] = {}
"""Package -> module -> flat file name. Filled in a bundled copy, which has no folders (:mod:`hf_longattn.hub.remote_code`)."""


def module_names(package: str) -> list[str]:
    """The modules of a sub-package (``mechanisms``, ``families``), sorted: adding one is adding a file."""
    if FLAT_FILES:
        return sorted(FLAT_FILES[package])
    return sorted(module.name for module in pkgutil.iter_modules(_folders(package)) if not module.ispkg)


def module_path(package: str, name: str) -> Path | None:
    """The file of a module of a sub-package, which need not be imported; ``None`` if there is none."""
    candidates = (Path(folder, name) for folder in _folders(package))
    files = (file for path in candidates for file in (path.with_suffix(".py"), path / "__init__.py"))
    return next((file for file in files if file.is_file()), None)


def _folders(package: str) -> list[str]:
    """Where the modules of a sub-package lie, which is not imported for this: its imports may be slow."""
    imported = sys.modules.get(f"{__package__}.{package}".rstrip("."))
    return [str(Path(__file__).parent.joinpath(*package.split(".")))] if imported is None else list(imported.__path__)


def load_module(package: str, name: str) -> ModuleType:
    """Import one of them."""
    return importlib.import_module(f"{__package__}.{FLAT_FILES[package][name] if FLAT_FILES else f'{package}.{name}'}")
