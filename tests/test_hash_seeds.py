"""Nothing that a seed draws depends on the order of strings in sets, which changes from process to process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trained import tokenizer_of
from tests.training.conftest import checkpoint


@pytest.mark.parametrize("what", ["probes", pytest.param("inputs", marks=pytest.mark.slow), pytest.param("search", marks=pytest.mark.slow)])
def test_two_hash_seeds_draw_the_same(what: str, tmp_path: Path, repository: Path) -> None:
    checkpoint("mlm", tmp_path / "model", tokenizer_of("bert", 64))
    drawn = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "tests.hash_seeds", what, str(folder), str(tmp_path / "model")],
            cwd=repository, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        drawn.append(json.loads(done.stdout.splitlines()[-1]))
    assert drawn[0] == drawn[1]
    assert drawn[0]
