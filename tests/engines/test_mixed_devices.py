"""No operation of any mechanism mixes tensors of a GPU with those of the CPU; without a GPU, by tensors that claim to be on one.

It takes g++; where there is none, the tests are skipped and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hf_longattn import list_mechanisms

from .pretended_h100 import results

pytestmark = pytest.mark.slow
REFUSED = {"nystrom": "InputError: Mechanism 'nystrom' averages the queries of a whole text"}
"""What mechanisms refuse on every device."""


@pytest.fixture(scope="module")
def ran() -> Iterator[Callable[[str], dict[str, Any]]]:
    with results("tests.engines.mixed_devices", "mechanism") as result_of:
        yield result_of


@pytest.mark.parametrize("name", list_mechanisms(grid=False))
def test_no_mechanism_mixes_tensors_of_a_gpu_and_the_cpu(name: str, ran: Callable[[str], dict[str, Any]]) -> None:
    result = ran(name)
    assert result["calls"] >= 7
    assert not {call: failure for call, failure in result["failures"].items() if not failure.startswith(REFUSED.get(name, "-"))}
