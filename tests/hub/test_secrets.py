"""A token is used and never shown: not in output at any verbosity, not in a file, not in an error, not in a traceback."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_longattn.cli import main
from hf_longattn.errors import HubError
from hf_longattn.hub import push_model
from hf_longattn.hub_errors import TOKEN, redacted, translated_errors

from ..hub_server import serve
from ..hub_state import READER, WRITER, Fault, Hub
from ..warm import run_fresh

REPO = "writer/long-bert"
LOUD = {
    "HF_DEBUG": "1",
    "HF_HUB_VERBOSITY": "debug",
    "TRANSFORMERS_VERBOSITY": "debug",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_OFFLINE": "0",
}


def loud_command(*arguments: str) -> None:
    """`longattn`, in a process whose errors say everything."""
    sys.tracebacklimit = 100
    faulthandler.enable()
    main(list(arguments))


def spoken(folder: Path, endpoint: str, token_in: str, token: str, *arguments: object) -> str:
    """All output of `longattn` with the token given on the command line or in the environment."""
    environment = {**os.environ, **LOUD, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home")}
    environment.pop("HF_TOKEN", None)
    flags = ["--token", token] if token_in == "flag" else []
    environment |= {"HF_TOKEN": token} if token_in == "environment" else {}
    done = run_fresh(loud_command, *map(str, arguments), *flags, env=environment, cwd=folder)
    return f"{done.returncode}\n{done.stdout}\n{done.stderr}"


def test_nothing_that_is_said_or_written_holds_a_token(converted: Callable[[str], Path], tmp_path: Path) -> None:
    source = converted("bert").with_name("source")
    with serve(Hub()) as server:
        server.add("writer/short", source, private=True)
        convert = ("convert", "writer/short", tmp_path / "long", "--max-length", 128, "--no-verify", "--json", "--push-to-hub", REPO)
        said = [spoken(tmp_path, server.endpoint, "flag", WRITER, *convert)]
        server.faults = [Fault("PUT", "/lfs/", 100)]
        (tmp_path / "long" / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
        said.append(spoken(tmp_path, server.endpoint, "environment", WRITER, "push", tmp_path / "long", REPO))
        said.append(spoken(tmp_path, server.endpoint, "environment", READER, "push", tmp_path / "long", REPO, "--json"))
    assert [text.splitlines()[0] for text in said] == ["0", "0", "1"]
    assert "curl" in said[1], "the libraries were not asked to be loud"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    sent = [content for repo in server.repos.values() for files in repo.branches.values() for content in files.values()]
    for token in (WRITER, READER):
        assert not any(token in text for text in said)
        assert not any(token.encode() in content for content in (*(path.read_bytes() for path in written), *sent))


def test_a_token_in_an_error_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError) as refused, translated_errors("me/model", WRITER):
        raise ValueError(f"the server said: bad header Bearer {WRITER}")
    assert WRITER not in str(refused.value)
    assert refused.value.__cause__ is None, "the traceback would print it"
    assert redacted("secret-of-another-shape", "secret-of-another-shape") == "hf_***"
    assert TOKEN.search("hf_longattn and hf_hub_download") is None


def test_the_token_is_not_kept(converted: Callable[[str], Path], hub: Callable[[str], None]) -> None:
    with serve(Hub()) as server:
        hub(server.endpoint)
        report = push_model(converted("bert"), REPO, token=WRITER)
    assert WRITER not in repr(report)
    assert not any(WRITER in line for line in server.requests)
