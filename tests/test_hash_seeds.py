"""Nothing that a seed draws depends on the order of strings in sets, which changes from process to process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fresh_processes import run_fresh
from tests.trained import tokenizer_of
from tests.training.conftest import checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("what", ["inputs", "search"])
def test_training_inputs_and_searches_are_the_same_under_every_hash_seed(what: str, tmp_path: Path, repository: Path) -> None:
    """With a seed of its own, and with that of this run's fresh processes, which is random unless the run has one."""
    checkpoint("mlm", tmp_path / "model", tokenizer_of("bert", 64))
    command = ["-m", "tests.hash_seeds", what]
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    runs = [
        subprocess.run(
            [sys.executable, *command, str(folders[0]), str(tmp_path / "model")],
            cwd=repository, capture_output=True, text=True, check=False, env=environment,
        ),
        run_fresh(*command, folders[1], tmp_path / "model", cwd=repository),
    ]  # fmt: skip
    for done in runs:
        assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads(done.stdout.splitlines()[-1]) for done in runs)
    assert first == second
    assert first
