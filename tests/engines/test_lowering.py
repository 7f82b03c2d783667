"""Every kind of kernel that the CUDA engine asks for can be generated for an H100, by PyTorch's own compiler, without a GPU.

It takes Triton's wheel (200 MB, downloaded once into .tmp) and g++; where these cannot be had, the tests are skipped and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hf_longattn import list_mechanisms
from scripts.dev.tools.lowering import failures_of

from .lowering import BY_OPERATOR, CASES, OF_A_TOKEN, REFUSED
from .pretended_h100 import results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lowered() -> Iterator[Callable[[str], dict[str, Any]]]:
    with results("tests.engines.lowering", "case") as result_of:
        yield result_of


@pytest.mark.parametrize("case", CASES)
def test_a_fused_kernel_can_be_generated(case: str, lowered: Callable[[str], dict[str, Any]]) -> None:
    result = lowered(case)
    if case in REFUSED:
        assert result["failure"].startswith("NoKernel: ")
        return
    assert not result["failure"]
    fused = [name for name in result["kernels"] if name.startswith("triton_tem")]
    assert len(fused) == (0 if case in (*BY_OPERATOR, *OF_A_TOKEN) else 2 if case.endswith("gradients") else 1)


@pytest.fixture(scope="module")
def lowered_mechanism() -> Iterator[Callable[[str], dict[str, Any]]]:
    with results("tests.engines.lowered_mechanisms", "mechanism") as result_of:
        yield result_of


@pytest.mark.parametrize("name", list_mechanisms())
def test_what_a_mechanism_asks_for_can_be_generated(name: str, lowered_mechanism: Callable[[str], dict[str, Any]]) -> None:
    """Its calls are made in every condition; which of them take flex_attention is compared with what is stored in
    ``tests/scripts/dev/tools/test_lowering.py``."""
    assert not failures_of(lowered_mechanism(name))
