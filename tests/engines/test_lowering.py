"""Every kind of kernel that the CUDA engine asks for can be generated for an H100, by PyTorch's own compiler, without a GPU.

It takes Triton's wheel (200 MB, downloaded once into .tmp) and g++; where these cannot be had, the tests are skipped and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hf_longattn import list_mechanisms, mechanism_info

from .lowered_mechanisms import CONDITIONS
from .lowering import BY_OPERATOR, CASES, OF_A_TOKEN, REFUSED
from .pretended_h100 import results

pytestmark = pytest.mark.slow
WITHOUT_FLEX = {
    "linear": "states, by flash-linear-attention or plain products",
    "linear (chunked WY)": "a state, likewise",
    "dense": "all pairs of the text",
    "recurrent": "all pairs of a segment",
    "low_rank": "products of low rank",
    "grid_windows": "calls for all windows of an image",
    "selected": "keys gathered for each query",
}
"""Engines that do not compare tokens by lists of blocks, and what they do."""


@pytest.fixture(scope="module")
def lowered() -> Iterator[Callable[[str], dict[str, Any]]]:
    with results("tests.engines.lowering", "case") as result_of:
        yield result_of


@pytest.mark.parametrize("case", CASES)
def test_each_flex_call_can_be_lowered_for_an_h100(case: str, lowered: Callable[[str], dict[str, Any]]) -> None:
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
def test_flex_calls_of_every_mechanism_can_be_lowered_for_an_h100(name: str, lowered_mechanism: Callable[[str], dict[str, Any]]) -> None:
    """Its calls are made in every condition, in fp32 too where PyTorch's flash-attention operator takes them in half precision."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in lowered_mechanism(name)["cells"]:
        cells.setdefault((cell["form"], cell["condition"]), []).append(cell)
    form = mechanism_info(name).causal
    forms = ["both ways", "causal"] if form == "both" else ["causal" if form else "both ways"]
    assert list(cells) == [(form, condition) for form in forms for condition in CONDITIONS]
    compares_blocks = mechanism_info(name).engine not in WITHOUT_FLEX
    for where, found in cells.items():
        assert not [failure for cell in found for failure in cell["failures"]], where
        assert bool(sum(cell["kernels"] for cell in found)) == compares_blocks, where
