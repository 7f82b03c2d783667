"""Commands that talk to a Hub with a token, in one process where every library says all that it can; run by the test
of secrets."""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path

from ..hub_server import READER, WRITER, Hub, serve

REPO = "writer/long-bert"
MARK = "===="
"""Begins the line on stderr after each command, with its exit code."""
LOUD = {
    "HF_DEBUG": "1",
    "HF_HUB_VERBOSITY": "debug",
    "TRANSFORMERS_VERBOSITY": "debug",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_OFFLINE": "0",
}


def use_tokens(source: str, folder: str) -> None:
    """Convert and push, push changed weights, push without the right to; what arrives is written into ``folder``."""
    sys.tracebacklimit = 100
    faulthandler.enable()
    long, convert = str(Path(folder) / "long"), ("--max-length", "128", "--no-verify", "--json")
    os.environ.pop("HF_TOKEN", None)
    with serve(Hub()) as server:
        os.environ["HF_ENDPOINT"] = server.endpoint
        server.add("writer/short", Path(source), private=True)
        say("convert", "writer/short", long, *convert, "--token", WRITER)
        say("push", long, REPO, "--token", WRITER)
        (Path(long) / "model.safetensors").write_bytes((Path(source) / "model.safetensors").read_bytes())
        os.environ["HF_TOKEN"] = WRITER
        say("push", long, REPO)
        os.environ["HF_TOKEN"] = READER
        say("push", long, REPO, "--json")
    sent = [
        content for repo in server.repos.values() for files in repo.branches.values() for content in files.values()
    ]
    for number, content in enumerate(sent):
        (Path(folder) / f"sent-{number}").write_bytes(content)


def say(*command: str) -> None:
    from hf_longattn.cli import main

    try:
        main(list(command))
    except SystemExit as ended:
        print(f"{MARK} {ended.code or 0}", file=sys.stderr, flush=True)
