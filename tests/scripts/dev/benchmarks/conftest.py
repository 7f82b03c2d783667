"""Peak memory in processes that are there at once, and a GPU's choices without a GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.dev.benchmarks import memory
from tests.engines.conftest import cuda_paths, emulated_flash, unfused_flex
from tests.fresh_processes import run_fresh

__all__ = ["cuda_paths", "emulated_flash", "unfused_flex", "warm_memory"]


@pytest.fixture
def warm_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is measured in processes that are forked; test_memory.py measures it in a new one, whose allocator has freed nothing."""

    def fork(command: list[str], *, env: Mapping[str, str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        return run_fresh(*command[1:], env=env, cwd=cwd)

    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(run=fork))
