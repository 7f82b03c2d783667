"""The keys that a mechanism says its queries attend to, and how far it says they lie: as in the weights of its
definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longattn import Mechanism, list_mechanisms
from hf_longattn.engines.call import AttentionCall
from hf_longattn.engines.token_grid import Grid
from hf_longattn.errors import InputError
from hf_longattn.mechanisms.common.base import (
    attention_weights,
    scaled_scores,
    softmax_over,
    visible_in_full_attention,
)
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from
from hf_longattn.mechanisms.common.shared_options import attended_keys_of
from tests.cases import every_case

LENGTH, HEADS, WIDTH = 150, 4, 16
MORE = [
    ("window", {"window": 16, "num_sinks": 3}),
    ("window", {"window": 8, "dilation": (1, 2, 4, 1)}),
    ("longformer", {"window": 16, "global_tokens": (0, 70)}),
    ("bigbird", {"block_size": 8, "num_random_blocks": 2}),
    ("segmented", {"block_size": 24, "integration": "previous"}),
    ("segmented", {"block_size": 24, "integration": "none"}),
    ("lsh", {"num_hashes": 3, "bucket_size": 16, "num_buckets": 8, "num_chunks_after": 1}),
    ("lsh", {"num_hashes": 2, "bucket_size": 8, "num_buckets": 64}),
    ("routing", {"num_clusters": 6, "window_per_cluster": 20}),
    ("transformer_xl", {"segment_length": 24, "memory_length": 40}),
    ("union", {"of": "window:window=16+strided:window=8,stride=16"}),
    ("adaptive_span", {"max_span": 40, "ramp": 1, "init_span": 20}),
]
SOFT = ("adaptive_span",)
"""Mechanisms whose weights fade at the edge of what they keep."""
NOT_A_SELECTION = [
    ("lsh", {"shared_qk": True}),
    ("lsh", {"count_duplicates": True}),
    ("routing", {"router": "learned"}),
    ("longformer", {"separate_global": True}),
    ("recurrent_memory", {}),
    ("segmented", {"integration": "pooled"}),
]


def built(name: str, options: dict[str, Any], length: int = LENGTH) -> Mechanism:
    return mechanism_from(
        name, options, num_heads=HEADS, head_dim=WIDTH, max_length=None if "max_length" in options else length
    )


@every_case("padded", [False, True], ids=["whole", "padded"])
@every_case("causal", [False, True], ids=["both", "causal"])
@every_case(("name", "options"), [(name, None) for name in list_mechanisms(grid=False)] + MORE, ids=str)
def test_attended_keys_have_the_weights_of_the_definition(
    name: str, options: dict[str, Any] | None, causal: bool, padded: bool
) -> None:
    mechanism = built(name, mechanism_class(name).about.sample if options is None else options)
    if mechanism.causal not in ("both", causal):
        pytest.skip("has no such form")
    q, k = torch.randn(2, HEADS, LENGTH, WIDTH).double(), torch.randn(2, HEADS // 2, LENGTH, WIDTH).double()
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [97]])
    call = AttentionCall.of(causal=causal, padding_mask=mask if padded else None)
    attended_keys = mechanism.attended_keys(q, k, call)
    if attended_keys is None:
        assert options is None or (causal and "wrap" in options), "one of the selections above"
        return
    rows = torch.tensor([0, 1, 40, 63, 64, 95, 96])  # real in both
    visible = visible_in_full_attention(q, k, call)
    scores = scaled_scores(q, k, call).masked_fill(~visible, float("-inf"))[:, :, rows]
    kept = attended_keys(rows, scores).expand(scores.shape)
    kept = kept & visible[:, :, rows]
    expected = softmax_over(scores, kept)
    with torch.no_grad():
        weights = mechanism.dense_weights(q, k, call)[:, :, rows]
    if name in SOFT and options is None:
        assert torch.equal(weights > 0, kept)
    else:
        torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)
    one = attended_keys(rows[3:4], scores[:, :, 3:4]).expand(scores[:, :, 3:4].shape) & visible[:, :, rows[3:4]]
    assert torch.equal(one, kept[:, :, 3:4]), "no row depends on the others"


@every_case(("name", "options"), NOT_A_SELECTION, ids=str)
def test_mechanisms_that_are_no_softmax_over_some_keys_name_no_attended_keys(
    name: str, options: dict[str, Any]
) -> None:
    mechanism = built(name, options)
    q = torch.randn(1, HEADS, LENGTH, WIDTH)
    assert mechanism.attended_keys(q, q, AttentionCall()) is None


def test_attended_keys_on_a_grid_are_those_of_the_definition() -> None:
    grid = Grid((9, 14), prefix=2)
    mechanism = mechanism_from("window2d", {"window": 4}, num_heads=HEADS, head_dim=WIDTH, max_length=grid.length)
    q, k = torch.randn(2, 1, HEADS, grid.length, WIDTH).double()
    call = AttentionCall(causal=False, grid=grid)
    scores, rows = scaled_scores(q, k, call), torch.tensor([0, 1, 2, 50, 127])
    weights = attention_weights(mechanism, q, k, call)[:, :, rows]
    attended = attended_keys_of(mechanism, q, k, call)(rows, scores[:, :, rows]).expand(weights.shape)
    torch.testing.assert_close(softmax_over(scores[:, :, rows], attended), weights, atol=1e-12, rtol=0)
    with pytest.raises(InputError):
        attended_keys_of(mechanism, q, k, AttentionCall(causal=False))


EXTENT = 240
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
    *(
        (name, {})
        for name in (
            "full",
            "bigbird",
            "strided",
            "fixed",
            "top_k",
            "block_top_k",
            "lsh",
            "routing",
            "linear",
            "nystrom",
        )
    ),
    ("union", {"of": "window:window=16+strided:window=8,stride=16"}),
    ("segmented", {"integration": "pooled"}),
]


@pytest.mark.thorough
@every_case("causal", [False, True], ids=["both", "causal"])
@every_case(("name", "options"), [*((name, None) for name in list_mechanisms(grid=False)), *BOUNDED], ids=str)
def test_no_query_sees_further_than_its_mechanism_says(
    name: str, options: dict[str, Any] | None, causal: bool
) -> None:
    mechanism = built(name, mechanism_class(name).about.sample if options is None else options, EXTENT)
    extent = mechanism.locality(causal)
    if extent is None or mechanism.causal not in ("both", causal):
        assert options is None or mechanism.causal not in ("both", causal)
        return
    q, k = torch.randn(1, HEADS, EXTENT, WIDTH).double(), torch.randn(1, HEADS, EXTENT, WIDTH).double()
    with torch.no_grad():
        seen = mechanism.eval().dense_weights(q, k, AttentionCall.of(causal=causal))[0] != 0
    seen &= ~(seen.sum(1, keepdim=True) > EXTENT // 2)  # keys: global tokens and sinks
    seen &= ~(seen.sum(2, keepdim=True) > EXTENT * 3 // 4)  # queries: global tokens
    distance = (torch.arange(EXTENT)[:, None] - torch.arange(EXTENT)).expand_as(seen)
    places = torch.arange(EXTENT).expand_as(seen)
    spans = places.masked_fill(~seen, -1).amax(2) - places.masked_fill(~seen, EXTENT).amin(2)
    width = int(spans[seen.any(2)].max())
    assert int(distance[seen].max()) <= extent.back
    assert int(-distance[seen].min()) <= extent.ahead
    assert width <= extent.width
    if options is not None and name != "adaptive_span":  # whose outermost keys fade to nothing
        assert extent.width - width <= (23 if name == "union" else 1), "the bound is tight"


@every_case(("name", "options"), UNBOUNDED, ids=str)
def test_mechanisms_with_distant_keys_or_keys_chosen_by_content_have_no_locality(
    name: str, options: dict[str, Any]
) -> None:
    mechanism = built(name, options, EXTENT)
    assert mechanism.locality(False) is None
    assert mechanism.locality(True) is None
