"""A token is used and never shown: not in output at any verbosity, not in a file, not in an error, not in a traceback."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_longattn.errors import HubError
from hf_longattn.hub import push_model
from hf_longattn.loading import TOKEN, translated_errors

from ..fresh_processes import run_fresh
from ..hub_server import serve
from ..hub_state import READER, WRITER, Hub
from .verbose_commands import LOUD, MARK, REPO, use_tokens


def test_no_output_or_file_of_convert_and_push_holds_a_token(converted: Callable[[str], Path], tmp_path: Path) -> None:
    environment = {**os.environ, **LOUD, "HF_HOME": str(tmp_path / "home")}
    done = run_fresh(use_tokens, converted("bert").with_name("source"), tmp_path, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    parts = re.split(f"^{MARK} (.*)$", done.stderr, flags=re.MULTILINE)
    assert parts[1::2] == ["0", "0", "0", "1"]
    assert "curl" in parts[2], "the libraries were not asked to be loud"
    contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / "sent-5").exists()
    for token in (WRITER, READER):
        assert token not in done.stdout + done.stderr
        assert not any(token.encode() in content for content in contents)


def test_errors_of_the_hub_hide_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for token in (WRITER, "secret-of-another-shape"):
        with pytest.raises(HubError, match=r"Bearer hf_\*\*\*") as refused, translated_errors("me/model", token):
            raise ValueError(f"the server said: bad header Bearer {token}")
        assert token not in str(refused.value)
        assert refused.value.__cause__ is None, "the traceback would print it"
    assert TOKEN.search("hf_longattn and hf_hub_download") is None


def test_report_of_a_push_keeps_no_token(converted: Callable[[str], Path], hub: Callable[[str], None]) -> None:
    with serve(Hub()) as server:
        hub(server.endpoint)
        report = push_model(converted("bert"), REPO, token=WRITER)
    assert WRITER not in repr(report)
    assert not any(WRITER in line for line in server.requests)
