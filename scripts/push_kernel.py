#!/usr/bin/env python
"""Upload the kernel to the Hub under its two names; without ``--upload``, say only what would be uploaded.

python scripts/push_kernel.py ORG
python scripts/push_kernel.py ORG --upload
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from scripts.build_kernel import NAMES, VERSION, write_kernel

BRANCHES = ("main", f"v{VERSION}")
"""Branches with the kernel. transformers asks for the branch of a version."""


def push(org: str, name: str, upload: bool) -> None:
    """Upload one kernel repository, or say what would be uploaded.

    Raises:
        SystemExit: the Hub refuses, or no temporary folder can be made.
    """
    repo = f"{org}/{name}"
    try:
        scratch = tempfile.TemporaryDirectory()
    except OSError as error:
        raise SystemExit(
            f"error: no temporary folder ({error}); set TMPDIR to a folder that you may write."
        ) from error
    with scratch:
        folder = Path(scratch.name) / name
        write_kernel(folder, name)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files)
        print(f"{repo}: {len(files)} files, {size / 1024:,.0f} KB, to the branches {' and '.join(BRANCHES)}")
        for path in files:
            print(f"  {path.relative_to(folder).as_posix()}")
        if not upload:
            return
        api = HfApi()
        try:
            api.create_repo(repo, repo_type="kernel", exist_ok=True)
            for branch in BRANCHES:
                api.create_branch(repo, branch=branch, repo_type="kernel", exist_ok=True)
                message = f"Version {VERSION} of the kernel"
                api.upload_folder(
                    repo_id=repo, folder_path=folder, repo_type="kernel", revision=branch, commit_message=message
                )
        except HfHubHTTPError as error:
            raise SystemExit(f"error: the Hub refused {repo}: {error.server_message or error}") from error
        print(f'  uploaded; attn_implementation="{repo}"')


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("org", help="organization or user on the Hub that publishes the kernel")
    parser.add_argument("--upload", action="store_true", help="upload; without it, nothing is sent")
    options = parser.parse_args(arguments)
    if options.upload and get_token() is None:
        sys.exit("error: You are not logged in to the Hub. Run `hf auth login` with a token that may write.")
    for name in NAMES:
        push(options.org, name, options.upload)
    if not options.upload:
        print(f"Nothing was uploaded. To upload:  python scripts/push_kernel.py {options.org} --upload")


if __name__ == "__main__":
    main()
