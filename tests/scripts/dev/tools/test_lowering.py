"""What PyTorch's compiler makes of every mechanism for an H100, as stored by ``python -m scripts.dev.tools.lowering``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hf_longattn import list_mechanisms, mechanism_info
from scripts.dev.tools.lowering import RESULTS, WITHOUT_KERNEL, failures_of, markdown
from tests.engines.lowered_mechanisms import CONDITIONS
from tests.engines.lowering import CASES, REFUSED

STORED = json.loads((RESULTS / "lowering.json").read_text(encoding="utf-8"))
AGAIN = "run `python -m scripts.dev.tools.lowering --missing`"
WITHOUT_FLEX = {
    **dict.fromkeys(
        ("linear", "performer", "taylor", "hedgehog", "cosformer", "delta", "hybrid"), "states, by kernels of our own or plain products"
    ),
    **dict.fromkeys(("full", "infini", "synthesizer"), "all pairs of the text or of a segment"),
    **dict.fromkeys(("linformer", "nystrom"), "products of low rank"),
    **dict.fromkeys(("axial", "local2d", "neighborhood", "shifted_groups", "window2d"), "calls for all windows of a picture or a text"),
    "top_k": "keys gathered for each query",
}
"""Mechanisms that do not compare tokens by lists of blocks, and what they do."""


@pytest.mark.parametrize("name", list_mechanisms())
def test_every_mechanism_is_lowered_in_every_condition(name: str) -> None:
    """In fp32, too, where PyTorch's flash-attention operator takes the calls in half precision; a new mechanism is to be stored."""
    assert name in STORED["mechanisms"], AGAIN
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in STORED["mechanisms"][name]["cells"]:
        found.setdefault((cell["form"], cell["condition"]), []).append(cell)
    form = mechanism_info(name).causal
    forms = ["both ways", "causal"] if form == "both" else ["causal" if form else "both ways"]
    assert list(found) == [(form, condition) for form in forms for condition in CONDITIONS], AGAIN
    assert not failures_of(STORED["mechanisms"][name])
    for where, cells in found.items():
        assert bool(sum(cell["kernels"] for cell in cells)) == (name not in WITHOUT_FLEX), where


def test_every_kind_of_call_is_stored_and_lowered() -> None:
    assert list(STORED["cases"]) == list(CASES), AGAIN
    refused = {name: failure for name, result in STORED["cases"].items() for failure in failures_of(result)}
    assert set(refused) == set(REFUSED)
    assert all(failure.startswith(WITHOUT_KERNEL) for failure in refused.values())


def test_the_page_is_that_of_the_record() -> None:
    assert (RESULTS / "lowering.md").read_text(encoding="utf-8") == markdown(STORED)
