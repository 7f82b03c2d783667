"""Make a release ready, without uploading anything: ``python -m scripts.dev.tools.release`` (``make release``).

The source distribution and the wheel are written into ``dist/``, the latter from the former. It is checked that a
wheel from the checkout is the same to the byte, that both hold what :func:`wheel_files` and :func:`sdist_files` say
and no more, and their metadata by ``twine check --strict``.
"""

from __future__ import annotations

import argparse
import fnmatch
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import hf_longattn
from hf_longattn.modeling.family.definition import family_rows

ROOT = Path(__file__).resolve().parents[3]
VERSION = hf_longattn.__version__
NAME = f"hf_longattn-{VERSION}"
DIST = ROOT / "dist"
ONLY_IN_GIT = (".git-blame-ignore-revs", ".ci/*", "model_cards/*/*.json", "model_cards/*/*.safetensors")
"""Tracked files that no distribution has; the reference checkpoints are 25 MB."""
METADATA = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
LARGEST_FILE, LARGEST_WHEEL, LARGEST_SDIST = 10**6, 3 * 10**6, 8 * 10**6
"""Bytes, above which something was packed that should not be."""
TWINE = "twine==7.0.0"


def tracked_files(root: Path = ROOT) -> set[str]:
    """The files that git keeps, relative to the root."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z"], check=True, capture_output=True, text=True
    ).stdout
    return {name for name in listed.split("\0") if name and (root / name).is_file()}


def stub_files(root: Path = ROOT) -> set[str]:
    """The types of the Long classes, which are generated: one for each module of a family, with or without a file."""
    rows = {f"hf_longattn/families/{name}.pyi" for name in family_rows()}
    return rows | {f"{name}i" for name in tracked_files(root) if fnmatch.fnmatch(name, "hf_longattn/families/*.py")}


def wheel_files(root: Path = ROOT) -> set[str]:
    """What the wheel holds: the package with its stubs, the recipes, and the metadata."""
    tracked = tracked_files(root)
    recipes = {f"hf_longattn/{name}" for name in tracked if name.startswith("configs/")}
    metadata = {f"{NAME}.dist-info/{name}" for name in METADATA}
    return {name for name in tracked if name.startswith("hf_longattn/")} | stub_files(root) | recipes | metadata


def sdist_files(root: Path = ROOT) -> set[str]:
    """What the source distribution holds: all that git keeps but :data:`ONLY_IN_GIT`, the stubs, and the metadata."""
    kept = {name for name in tracked_files(root) if not any(fnmatch.fnmatch(name, pattern) for pattern in ONLY_IN_GIT)}
    return kept | stub_files(root) | {"PKG-INFO"}


def differences(packed: dict[str, int], expected: set[str], size: int, largest: int) -> list[str]:
    """What is wrong with an archive, a line each.

    Args:
        packed: name -> bytes, of its files.
        expected: the names that it should have.
        size, largest: bytes of the archive, and how many it may have.
    """
    wrong = [f"lacks {name}" for name in sorted(expected - packed.keys())]
    wrong += [f"has {name}, which nobody expects" for name in sorted(packed.keys() - expected)]
    wrong += [f"has {name} of {bytes_} bytes" for name, bytes_ in packed.items() if bytes_ > LARGEST_FILE]
    return wrong + ([f"has {size} bytes, more than {largest}"] if size > largest else [])


def run(*command: str | Path) -> None:
    """Run a command in the checkout; its failure ends the program."""
    print("$", *command, flush=True)
    if code := subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode:
        sys.exit(code)


def build() -> None:
    """Both distributions, checked; nothing is uploaded."""
    uv = Path(sys.executable).with_name("uv")
    DIST.mkdir(exist_ok=True)
    wheel, sdist = DIST / f"{NAME}-py3-none-any.whl", DIST / f"{NAME}.tar.gz"
    # with torch and transformers, which the stubs are made of
    options = ("--python", sys.executable, "--no-build-isolation", "--quiet")
    run(uv, "build", *options, "--out-dir", DIST)
    with tempfile.TemporaryDirectory() as folder:
        run(uv, "build", "--wheel", *options, "--out-dir", folder)
        same = (Path(folder) / wheel.name).read_bytes() == wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {entry.filename: entry.file_size for entry in archive.infolist()}
    with tarfile.open(sdist) as source:
        in_sdist = {entry.name.removeprefix(f"{NAME}/"): entry.size for entry in source.getmembers()}
    wrong = [] if same else [f"{wheel.name} differs from a wheel built from the checkout"]
    for file, packed, expected, largest in (
        (wheel, in_wheel, wheel_files(), LARGEST_WHEEL),
        (sdist, in_sdist, sdist_files(), LARGEST_SDIST),
    ):
        wrong += [f"{file.name} {line}" for line in differences(packed, expected, file.stat().st_size, largest)]
        print(f"{file.name}: {len(packed)} files, {file.stat().st_size:,} bytes")
    if wrong:
        sys.exit("\n".join(["Error: the distributions are not what they should be:", *wrong]))
    run(uv, "tool", "run", TWINE, "check", "--strict", wheel, sdist)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m scripts.dev.tools.release", description=__doc__).parse_args()
    build()
