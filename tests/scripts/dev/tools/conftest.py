"""Commands of the checks of families in processes that are there at once."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.dev.tools import family_checks
from tests.warm import run_fresh


@pytest.fixture
def warm_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line that a check calls runs in a forked process; the slow tests start a new one for every family."""

    def fork(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return run_fresh(*command[1:])

    monkeypatch.setattr(family_checks, "subprocess", SimpleNamespace(run=fork))
