"""No operation of any mechanism mixes tensors of a GPU with those of the CPU; without a GPU, by tensors that claim to be on one.

It takes g++; where there is none, the tests are skipped and say so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_longattn import list_mechanisms

pytestmark = pytest.mark.slow
REFUSED = {"nystrom": "LengthError: Mechanism 'nystrom' averages the queries of a whole text"}
"""What mechanisms refuse on every device."""


@pytest.fixture(scope="module")
def ran(repository: Path) -> Iterator[Callable[[str], dict[str, Any]]]:
    """The result of a mechanism, which one process finds after another."""
    results: dict[str, dict[str, Any]] = {}
    command = [sys.executable, "-m", "tests.engines.mixed_devices"]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        output = process.stdout
        assert output is not None

        def result_of(name: str) -> dict[str, Any]:
            while name not in results:
                line = output.readline()
                assert line, f"`python -m tests.engines.mixed_devices {name}` ended early"
                result = json.loads(line)
                results[result.get("mechanism", name)] = result
            return results[name]

        yield result_of
        process.kill()


@pytest.mark.parametrize("name", list_mechanisms())
def test_everything_is_on_the_gpu(name: str, ran: Callable[[str], dict[str, Any]]) -> None:
    result = ran(name)
    if "lacking" in result:
        pytest.skip(f"nothing ran on pretended devices: {result['lacking']}")
    expected = REFUSED.get(name, "-")
    assert result["calls"] >= 7
    assert not {call: failure for call, failure in result["failures"].items() if not failure.startswith(expected)}
