"""Every kind of kernel that the CUDA engine asks for can be generated for an H100, by PyTorch's own compiler, without a GPU.

It takes Triton's wheel (200 MB, downloaded once into .tmp) and g++; where these cannot be had, the tests are skipped and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .lowering import BY_OPERATOR, CASES, REDUCTIONS, REFUSED
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
    assert len(fused) == (0 if case in (*BY_OPERATOR, *REDUCTIONS) else 2 if case.endswith("gradients") else 1)
