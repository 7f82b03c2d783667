"""Peak memory in processes that are there at once, and a GPU's choices without a GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.dev.benchmarks import memory, run
from tests.engines.conftest import cuda_paths, emulated_flash, unfused_flex
from tests.warm import run_fresh

__all__ = ["cuda_paths", "emulated_flash", "unfused_flex", "warm_memory"]


@pytest.fixture(autouse=True)
def _known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of the machine is no number of a test, and takes more than a second to measure; test_peak.py measures it."""
    monkeypatch.setattr(run, "matrix_peak", lambda *_: 1e11)


@pytest.fixture
def warm_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is measured in processes that are forked; test_memory.py measures it in a new one, whose allocator has freed nothing."""

    def fork(command: list[str], *, env: Mapping[str, str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        return run_fresh(*command[1:], env=env, cwd=cwd)

    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(run=fork))
