"""The reference corpus: Python source that every installation of this project already has.

It is the source of the standard library and of a fixed list of pinned dependencies, so it is deterministic by version and
needs no download. It is split **by package** (top-level import name; each top-level standard-library module counts as one):

* test: ``networkx`` and ``pandas`` (both well documented, both installed by dependencies of the package);
* validation: ``huggingface_hub`` and ``numpy``;
* train: everything else in :data:`PACKAGES`, and the standard library.

A file that occurs twice (same text) is kept once, and the copy in the held-out splits wins: nothing of a test package is
ever seen in training. Vendored copies (``_vendor`` folders), tables of numbers and very large files are left out, and so is
this project itself.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

from hf_longattn.errors import LongAttentionError

SPLITS = ("train", "validation", "test")
TEST_PACKAGES = frozenset({"networkx", "pandas"})
VALIDATION_PACKAGES = frozenset({"huggingface_hub", "numpy"})
STANDARD_LIBRARY = frozenset(sys.stdlib_module_names) | {"test"}
_TRAIN_PACKAGES = """
    PIL _pytest accelerate aiohttp anyio attr click contourpy cycler datasets dateutil dill evaluate filelock fontTools fsspec
    httpcore2 httpx2 hypothesis jinja2 joblib markdown_it matplotlib mpl_toolkits mpmath multiprocess mypy mypyc narwhals
    packaging peft pip pluggy psutil pyarrow pydantic pygments pyparsing regex requests rich safetensors scipy
    sentence_transformers setuptools sklearn sympy torch torchgen tqdm transformers typer typing_inspection urllib3 yaml yarl
"""
PACKAGES = tuple(sorted({*_TRAIN_PACKAGES.split(), *TEST_PACKAGES, *VALIDATION_PACKAGES}))

_SKIPPED_FOLDERS = frozenset({"__pycache__", "_vendor", "_vendored", "site-packages", "dist-packages", "pydoc_data"})
_MIN_BYTES, _MAX_BYTES = 200, 400_000
_MAX_DIGITS = 0.2  # share of digits above which a file is a table, not a program


@dataclass(frozen=True)
class Module:
    """One source file: its top-level ``package``, its ``path`` relative to the installation (posix) and its ``text``."""

    package: str
    path: str
    text: str


def split_of(package: str) -> str:
    """Return the split that ``package`` (a top-level import name of the corpus) belongs to."""
    return "test" if package in TEST_PACKAGES else "validation" if package in VALIDATION_PACKAGES else "train"


def iter_modules(split: str) -> Iterator[Module]:
    """Yield the de-duplicated modules of one of :data:`SPLITS`, ordered by package and path.

    Raises:
        LongAttentionError: unknown split.
    """
    names, seen = _packages_of(split), set(_held_out_digests(split))
    for package in names:
        for module, digest in _read_package(package):
            if digest not in seen:
                seen.add(digest)
                yield module


def _packages_of(split: str) -> list[str]:
    """Return the installed packages of ``split``, third-party ones first."""
    if split not in SPLITS:
        raise LongAttentionError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    names = [*PACKAGES, *sorted(STANDARD_LIBRARY - set(PACKAGES))]
    return [name for name in names if split_of(name) == split and _locate(name)]


@cache
def _locate(package: str) -> Path | None:
    """Return the folder or the file of an installed package, without importing it."""
    if package in STANDARD_LIBRARY:
        base = Path(sysconfig.get_paths()["stdlib"]) / package
        return next((p for p in (base, base.with_suffix(".py")) if p.exists()), None)
    roots = [sysconfig.get_paths()[key] for key in ("purelib", "platlib")]
    spec = PathFinder.find_spec(package, [*dict.fromkeys(roots)]) or PathFinder.find_spec(package)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def _read_package(package: str) -> Iterator[tuple[Module, bytes]]:
    """Yield the usable modules of one package with the digests of their texts, ordered by path."""
    root = _locate(package)
    if root is None:
        return
    for path in [root] if root.is_file() else _source_files(root):
        content = path.read_bytes()
        digits = len(content) - len(content.translate(None, b"0123456789"))
        if _MIN_BYTES <= len(content) <= _MAX_BYTES and digits <= _MAX_DIGITS * len(content) and (text := _decode(content)):
            # without white space at the ends of lines, so that copies that differ only in it are the same
            bare = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip()
            name, encoded = path.relative_to(root.parent).as_posix(), bare.encode("utf-8", "surrogatepass")
            yield Module(package, name, text), hashlib.sha256(encoded).digest()


def _source_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _SKIPPED_FOLDERS)
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


@cache
def _held_out_digests(split: str) -> frozenset[bytes]:
    """Return the digests of the splits that take precedence over ``split`` (test before validation before train)."""
    earlier = {"train": ("validation", "test"), "validation": ("test",), "test": ()}[split]
    return frozenset(digest for name in earlier for package in _packages_of(name) for _, digest in _read_package(package))


def _decode(content: bytes) -> str:
    """Decode UTF-8 with unix line ends; '' when the file is in another encoding."""
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        return ""
