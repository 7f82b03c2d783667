"""Where the keys of one query lie: what a mechanism says agrees with the weights of its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longattn import list_mechanisms
from hf_longattn.engines.call import AttentionCall
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from
from tests.cases import every_case

LENGTH, HEADS, WIDTH = 240, 4, 16
BOUNDED: list[tuple[str, dict[str, Any]]] = [
    ("window", {"window": 16}),
    ("window", {"window": 17, "num_sinks": 3}),
    ("window", {"left": 21, "right": 5}),
    ("window", {"window": 8, "dilation": (1, 2, 4, 1)}),
    ("window", {"window": 8, "dilation": 3, "num_sinks": 2}),
    ("longformer", {"window": 16, "global_tokens": (0, 2)}),
    ("longformer", {"left": 3, "right": 20, "global_tokens": (0, 2)}),
    ("bigbird", {"block_size": 8, "num_random_blocks": 0}),
    ("bigbird", {"block_size": 8, "random_pattern": "hf_eval"}),
    ("segmented", {"block_size": 24, "integration": "previous"}),
    ("segmented", {"block_size": 24, "integration": "none"}),
    ("transformer_xl", {"segment_length": 24, "memory_length": 40}),
    ("adaptive_span", {"max_span": 40, "ramp": 1, "init_span": 40}),
    ("union", {"of": "window:window=16+segmented:block_size=24,integration=none"}),
    ("union", {"of": "segmented:block_size=24,integration=none"}),
]
UNBOUNDED: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("full", "bigbird", "strided", "fixed", "top_k", "block_top_k", "lsh", "routing", "linear", "nystrom")),
    ("union", {"of": "window:window=16+strided:window=8,stride=16"}),
    ("segmented", {"integration": "pooled"}),
]


def built(name: str, options: dict[str, Any]) -> Any:
    return mechanism_from(name, options, num_heads=HEADS, head_dim=WIDTH, max_length=LENGTH)


@pytest.mark.thorough
@every_case("causal", [False, True], ids=["both", "causal"])
@every_case(("name", "options"), [*((name, None) for name in list_mechanisms(grid=False)), *BOUNDED], ids=str)
def test_no_query_sees_further_than_its_mechanism_says(name: str, options: dict[str, Any] | None, causal: bool) -> None:
    mechanism = built(name, mechanism_class(name).about.sample if options is None else options)
    extent = mechanism.locality(causal)
    if extent is None or mechanism.causal not in ("both", causal):
        assert options is None or mechanism.causal not in ("both", causal)
        return
    q, k = torch.randn(1, HEADS, LENGTH, WIDTH).double(), torch.randn(1, HEADS, LENGTH, WIDTH).double()
    with torch.no_grad():
        seen = mechanism.eval().dense_weights(q, k, AttentionCall.of(causal=causal))[0] != 0
    seen &= ~(seen.sum(1, keepdim=True) > LENGTH // 2)  # keys: global tokens and sinks
    seen &= ~(seen.sum(2, keepdim=True) > LENGTH * 3 // 4)  # queries: global tokens
    distance = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).expand_as(seen)
    places = torch.arange(LENGTH).expand_as(seen)
    spans = places.masked_fill(~seen, -1).amax(2) - places.masked_fill(~seen, LENGTH).amin(2)
    width = int(spans[seen.any(2)].max())
    assert int(distance[seen].max()) <= extent.back
    assert int(-distance[seen].min()) <= extent.ahead
    assert width <= extent.width
    if options is not None and name != "adaptive_span":  # whose outermost keys fade to nothing
        assert extent.width - width <= (23 if name == "union" else 1), "the bound is tight"


@every_case(("name", "options"), UNBOUNDED, ids=str)
def test_mechanisms_with_distant_keys_or_keys_chosen_by_content_have_no_locality(name: str, options: dict[str, Any]) -> None:
    mechanism = built(name, options)
    assert mechanism.locality(False) is None
    assert mechanism.locality(True) is None
