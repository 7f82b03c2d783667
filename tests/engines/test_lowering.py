"""Every kind of kernel that the CUDA engine asks for can be generated for an H100, by PyTorch's own compiler, without a GPU.

It takes Triton's wheel (200 MB, downloaded once into .tmp) and g++; where these cannot be had, the tests are skipped and say so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .lowering import CASES, REFUSED

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lowered(repository: Path) -> Iterator[Callable[[str], dict[str, Any]]]:
    """The result of a case, which one process finds after another."""
    results: dict[str, dict[str, Any]] = {}
    command = [sys.executable, "-m", "tests.engines.lowering"]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        output = process.stdout
        assert output is not None

        def result_of(case: str) -> dict[str, Any]:
            while case not in results:
                line = output.readline()
                assert line, f"`python -m tests.engines.lowering {case!r}` ended early"
                result = json.loads(line)
                results[result.get("case", case)] = result
            return results[case]

        yield result_of
        process.kill()


@pytest.mark.parametrize("case", CASES)
def test_a_fused_kernel_can_be_generated(case: str, lowered: Callable[[str], dict[str, Any]]) -> None:
    result = lowered(case)
    if "lacking" in result:
        pytest.skip(f"nothing was lowered for a GPU: {result['lacking']}")
    if case in REFUSED:
        assert result["failure"].startswith("NoKernel: ")
        return
    assert not result["failure"]
    fused = [name for name in result["kernels"] if name.startswith("triton_tem")]
    assert len(fused) == (2 if case.endswith("gradients") else 1)
