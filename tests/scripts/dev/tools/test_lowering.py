"""What PyTorch's compiler makes of every mechanism for an H100, as stored by ``python -m scripts.dev.tools.lowering``."""

from __future__ import annotations

import json
from typing import Any

from hf_longattn import list_mechanisms, mechanism_info
from scripts.dev.tools.lowering import RESULTS, WITHOUT_KERNEL, failures_of, markdown
from tests.cells import every_cell
from tests.engines.lowered_mechanisms import CONDITIONS
from tests.engines.lowering import CASES, REFUSED

STORED = json.loads((RESULTS / "lowering.json").read_text(encoding="utf-8"))
AGAIN = "run `python -m scripts.dev.tools.lowering --missing`"
WITHOUT_FLEX = {
    "linear": "states, by flash-linear-attention or plain products",
    "linear (chunked WY)": "a state, likewise",
    "dense": "all pairs of the text",
    "recurrent": "all pairs of a segment",
    "low_rank": "products of low rank",
    "grid_windows": "calls for all windows of a picture",
    "grid_halo": "calls for all windows of a picture",
    "selected": "keys gathered for each query",
}
"""Engines that do not compare tokens by lists of blocks, and what they do."""
FULL_IN_EVAL_MODE = {"shifted_groups"}
"""Mechanisms that run full attention when they are not training."""


@every_cell("name", list_mechanisms())
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
    compares_blocks = mechanism_info(name).engine not in WITHOUT_FLEX and name not in FULL_IN_EVAL_MODE
    for where, cells in found.items():
        assert bool(sum(cell["kernels"] for cell in cells)) == compares_blocks, where


def test_every_kind_of_call_is_stored_and_lowered() -> None:
    assert list(STORED["cases"]) == list(CASES), AGAIN
    refused = {name: failure for name, result in STORED["cases"].items() for failure in failures_of(result)}
    assert set(refused) == set(REFUSED)
    assert all(failure.startswith(WITHOUT_KERNEL) for failure in refused.values())


def test_the_page_is_that_of_the_record() -> None:
    assert (RESULTS / "lowering.md").read_text(encoding="utf-8") == markdown(STORED)
