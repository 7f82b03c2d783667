"""transformers' own ModelTesterMixin on the Long families; the same run with a stored table is scripts/run_transformers_tests.py."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import transformers

from scripts import run_transformers_tests as suite


@pytest.mark.slow
@pytest.mark.parametrize("family", suite.FAMILIES)
def test_model_tester_mixin(family: str, tmp_path: Path) -> None:
    try:
        folder = suite.unpacked_sdist(suite.CACHE, transformers.__version__)
    except subprocess.CalledProcessError:
        pytest.skip(f"the sdist of transformers {transformers.__version__} is not in {suite.CACHE} and cannot be downloaded")
    report = tmp_path / "report.xml"
    suite.run(folder, suite.prepare(folder), [family], False, 1, report)
    result = suite.table(report)[f"long_{family}"]
    assert result["failures"] == []
    assert result["passed"] > 90
