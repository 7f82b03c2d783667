"""Whatever options are accepted, a query sees the keys that their help says it sees, whatever the queries and keys are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_longattn import build_mechanism
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.cells import every_cell
from tests.grids import drawn
from tests.reference.definitions import defined_mechanisms, definition_of

HEADS, WIDTH, LENGTH = 2, 4, 41
STATED = {name: getattr(definition_of(name), "always_visible", None) for name in defined_mechanisms()}
ALWAYS = [name for name, pairs in STATED.items() if pairs is not None]


def test_every_mechanism_says_what_is_always_visible_or_that_nothing_is() -> None:
    without = [name for name in defined_mechanisms() if not hasattr(definition_of(name), "always_visible")]
    assert not without, f"Write always_visible in the definitions of {without}, in tests/reference/definitions/."


@st.composite
def options_of(draw: Callable[..., Any], name: str) -> dict[str, Any]:
    """Some of the mechanism's options, most of which fit together."""
    chosen: dict[str, Any] = {key: value for key, value in mechanism_class(name).sample.items() if draw(st.booleans())}
    for field in mechanism_class(name).options_type.__dataclass_fields__.values():
        if field.name in ("relative", "seed", "separate_global", "max_length") or not draw(st.booleans()):
            continue
        kind, limits = type(field.default), field.metadata
        if limits.get("choices"):
            chosen[field.name] = draw(st.sampled_from(limits["choices"]))
        elif kind is bool and not field.name.startswith("global_"):
            chosen[field.name] = draw(st.booleans())
        elif kind is tuple and field.name != "global_token_ids":
            chosen[field.name] = draw(st.lists(st.integers(1, 5), min_size=1, max_size=2))
        elif kind is int:
            chosen[field.name] = draw(st.integers(0, 12))
    return chosen


@pytest.mark.thorough
@every_cell("causal", [False, True])
@every_cell("name", ALWAYS)
@drawn(60, quick=10)
@given(data=st.data())
def test_what_the_help_says_is_visible_is(name: str, causal: bool, data: st.DataObject) -> None:
    options = data.draw(options_of(name))
    module = None
    with contextlib.suppress(OptionError):
        module = build_mechanism(name, num_heads=HEADS, head_dim=WIDTH, max_length=LENGTH, **options).double().eval()
    if module is None or module.causal not in ("both", causal):
        return
    with torch.no_grad():
        q, k = torch.randn(2, 1, HEADS, LENGTH, WIDTH, dtype=torch.float64)
        seen = module.weights(q, k, causal=causal)[0] > 0
    h, places = torch.arange(HEADS)[:, None, None], torch.arange(LENGTH)
    expected = STATED[name](module.options, h, places[:, None], places, causal).expand(HEADS, -1, -1)
    if causal:
        expected = expected & (places <= places[:, None])
    missing = (expected & ~seen).nonzero()
    assert not len(missing), f"{options}: (head, query, key) {missing[0].tolist()} and {len(missing) - 1} more are hidden"
