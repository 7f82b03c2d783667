"""A decoded token costs a GPU about what it costs with the base, and the stored table says so."""

from __future__ import annotations

import json
import logging
import math

import pytest

from scripts.dev.tools.decode_counts import BASE, CACHES, PADDINGS, PLANS, RESULTS, markdown, model_of, step_of

STORED = json.loads((RESULTS / "decode_counts.json").read_text(encoding="utf-8"))
MOST = 1.2
"""Times the base's operations."""
PLAIN = ("full", "window", "longformer", "linear")


@pytest.mark.parametrize("name", [BASE, *(pytest.param(name, marks=pytest.mark.slow) if name == "window" else name for name in PLAIN)])
def test_operations_are_those_of_the_table(name: str) -> None:
    """Of one cell each; fewer is an occasion to store the table again."""
    logging.getLogger("hf_longattn").setLevel(logging.ERROR)
    model = model_of(PLANS.get(name))
    for cache, padding in (("dynamic", "none"), ("static", "left")):
        stored = STORED["models"][name]["steps"][f"{cache} {padding}"]
        step = step_of(model, cache, padding)
        assert step.operations == stored["operations"], f"python -m {step_of.__module__} stores the table again"
        assert dict(step.waits) == stored["waits"]


@pytest.mark.parametrize("name", PLAIN)
def test_no_layer_waits_and_few_operations_are_added(name: str) -> None:
    for cell, step in STORED["models"][name]["steps"].items():
        base = STORED["models"][BASE]["steps"][cell]
        assert step["operations"] <= MOST * base["operations"], cell
        assert sum(step["waits"].values()) <= sum(base["waits"].values()), cell
    assert STORED["models"][name]["graphs"] == STORED["models"][BASE]["graphs"]


def test_the_table_is_the_record_s() -> None:
    assert (RESULTS / "decode_counts.md").read_text(encoding="utf-8") == markdown(STORED)
    assert set(STORED["models"]) == {BASE, *PLANS}
    assert math.prod(map(len, (CACHES, PADDINGS))) == len(STORED["models"][BASE]["steps"])
