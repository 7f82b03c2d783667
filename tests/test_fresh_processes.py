"""A process forked from the warm one is like a new interpreter to the program that it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fresh_processes import LEVELS, run_fresh


def say(*words: str) -> None:
    """Run in the process."""
    print(Path.cwd(), os.environ.get("SAID"), *words, "hf_longattn" in sys.modules, "transformers" in sys.modules)


def fail() -> None:
    raise ValueError("on purpose")


def fall() -> None:
    os.kill(os.getpid(), 9)


def hang() -> None:
    import time

    time.sleep(60)


def test_run_fresh_keeps_environment_folder_output_and_status(tmp_path: Path) -> None:
    done = run_fresh(say, 1, "a b", env={**os.environ, "SAID": "yes"}, cwd=tmp_path)  # type: ignore[arg-type]
    assert (done.stdout, done.returncode) == (f"{tmp_path} yes 1 a b False True\n", 0)
    failed = run_fresh(fail)
    assert failed.returncode == 1
    assert failed.stderr.endswith("ValueError: on purpose\n")
    assert run_fresh(fall).returncode == -9
    with pytest.raises(subprocess.TimeoutExpired):
        run_fresh(hang, timeout=0.1)


def test_run_fresh_applies_variables_that_libraries_read_at_import() -> None:
    code = "import os, huggingface_hub.constants as c, hf_longattn; print(c.HF_HOME, os.environ['HF_TOKEN'], hf_longattn.__file__)"
    environment = {**os.environ, "HF_HOME": "/nowhere", "HF_TOKEN": "mine"}
    done = run_fresh("-c", code, env=environment)
    assert done.stdout.split()[:2] == ["/nowhere", "mine"], done.stderr
    with pytest.raises(ValueError, match="PYTHONHASHSEED would not be read"):
        run_fresh("-c", "", env={**os.environ, "PYTHONHASHSEED": "7"})


@pytest.mark.parametrize("level", LEVELS)
def test_run_fresh_at_a_level_has_imported_nothing_of_the_next(level: str) -> None:
    done = run_fresh("-c", "import sys; print([name for name in ('torch', 'transformers') if name in sys.modules])", level=level)
    assert done.stdout == {"interpreter": "[]\n", "torch": "['torch']\n", "transformers": "['torch', 'transformers']\n"}[level]
