"""Whatever options are accepted, a query sees the keys that their help says it sees, whatever the queries and keys are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_longattn import build_mechanism, list_mechanisms
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.grids import drawn

HEADS, WIDTH, LENGTH = 2, 4, 41
Pairs = Callable[[Any, Any, Any, Any, bool], Tensor]
"""``pairs(options, h, i, j, causal) -> bool``: the pairs that are always visible, causality apart."""


def band(width: int, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    return (i - j < width) if causal else (i - j).abs() <= width // 2


def near_blocks(size: int, i: Tensor, j: Tensor, *, before: int, after: int = 0) -> Tensor:
    away = i // size - j // size
    return (away <= before) & (away >= -after)


def bigbird(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    query, key, last = i // o.block_size, j // o.block_size, (LENGTH - 1) // o.block_size
    if causal:
        return (query - key < o.num_window_blocks) | (key < o.num_global_blocks)
    ends = [(block < o.num_global_blocks) | (block > last - o.num_global_blocks) for block in (query, key)]
    return ((query - key).abs() <= o.num_window_blocks // 2) | ends[0] | ends[1]


def longformer(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    tokens = torch.tensor([position in o.global_tokens for position in range(LENGTH)])
    return band(o.window, i, j, causal) | tokens[i] | tokens[j]


def lsg(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    tokens = torch.tensor([position in o.global_tokens for position in range(LENGTH)])
    shift = (o.block_size - o.block_offset) % o.block_size  # tokens before the first whole block are one themselves
    return near_blocks(o.block_size, i + shift, j + shift, before=1, after=1) | tokens[i] | tokens[j]


def nsa(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    sides = (o.local_blocks - 1, 0) if causal else (o.local_blocks // 2,) * 2
    return near_blocks(o.block_size, i, j, before=sides[0], after=sides[1]) | (j // o.block_size < o.initial_blocks)


def segmented(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    if o.integration in ("pooled", "attention"):
        return torch.ones_like(i == j)
    sides = int(o.integration == "previous")
    return near_blocks(o.block_size, i, j, before=sides, after=sides)


def shifted_groups(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    shift = torch.where(h >= HEADS // 2, o.group_size // 2, 0)
    return (i + shift) // o.group_size == (j + shift) // o.group_size if o.keep_groups else torch.ones_like(i == j)


def strided(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    column = (i - j) % o.stride == 0 if o.columns == "relative" else j % o.stride == o.stride - 1
    return band(o.window, i, j, causal) | column


def transformer_xl(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    start = i // o.segment_length * o.segment_length
    return (j >= start - o.memory_length) & (j < start + o.segment_length)


def window(o: Any, h: Tensor, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    dilation = torch.tensor(o.dilation)[h % len(o.dilation)]
    steps = (i - j) // dilation
    side = o.window - 1 if causal else o.window // 2
    return (((i - j) % dilation == 0) & (steps <= side) & (steps >= -side)) | (j < o.num_sinks)


ALWAYS: dict[str, Pairs] = {
    "adaptive_span": lambda o, h, i, j, causal: (i - j).abs() <= (o.max_span if o.init_span is None else o.init_span) - 1,
    "bigbird": bigbird,
    "block_top_k": lambda o, h, i, j, causal: near_blocks(o.block_size, i, j, before=0),
    "chunked": lambda o, h, i, j, causal: near_blocks(o.chunk_size, i, j, before=o.left_chunks),
    "fixed": lambda o, h, i, j, causal: near_blocks(o.block_size, i, j, before=0) | (j % o.block_size >= o.block_size - o.num_summary),
    "full": lambda o, h, i, j, causal: torch.ones_like(i == j),
    "hierarchical": lambda o, h, i, j, causal: near_blocks(o.block_size, i, j, before=1, after=1),
    "hybrid": lambda o, h, i, j, causal: band(o.window, i, j, causal),
    "infini": lambda o, h, i, j, causal: near_blocks(o.segment_length, i, j, before=0),
    "longformer": longformer,
    "lsg": lsg,
    "nsa": nsa,
    "routing": lambda o, h, i, j, causal: band(o.window, i, j, causal) & (o.window > 0),
    "segmented": segmented,
    "shifted_groups": shifted_groups,
    "strided": strided,
    "transformer_xl": transformer_xl,
    "window": window,
}
NOTHING = {
    *("cosformer", "delta", "hedgehog", "linear", "linformer", "nystrom", "performer", "synthesizer", "taylor"),  # weights of any size
    *("lsh", "top_k"),  # chosen by content
    *("per_head", "union"),  # what their members see
    "recurrent_memory",  # whose segments are those of a whole model
}
"""Mechanisms whose help names no keys that are always visible."""
VALUES = {"nsa": st.integers(0, 5)}
"""Numbers for the options; from 0 to 12 elsewhere."""
SIZES = {"nsa": {"compress_size": 4, "compress_stride": 2, "block_size": 4, "window": 1, "hidden": 4}}
"""Options that are not drawn, since few others would fit."""


def test_every_mechanism_says_what_is_always_visible_or_that_nothing_is() -> None:
    assert set(ALWAYS) | NOTHING == set(list_mechanisms(grid=False))
    assert not set(ALWAYS) & NOTHING


@st.composite
def options_of(draw: Callable[..., Any], name: str) -> dict[str, Any]:
    """Some of the mechanism's options, most of which fit together."""
    sizes = SIZES.get(name, {})
    chosen: dict[str, Any] = {key: value for key, value in mechanism_class(name).sample.items() if draw(st.booleans())} | sizes
    for field in mechanism_class(name).options_type.__dataclass_fields__.values():
        if field.name in ("relative", "seed", "separate_global", "max_length", *sizes) or not draw(st.booleans()):
            continue
        kind, limits = type(field.default), field.metadata
        if limits.get("choices"):
            chosen[field.name] = draw(st.sampled_from(limits["choices"]))
        elif kind is bool and not field.name.startswith("global_"):
            chosen[field.name] = draw(st.booleans())
        elif kind is tuple and field.name != "global_token_ids":
            chosen[field.name] = draw(st.lists(st.integers(1, 5), min_size=1, max_size=2))
        elif kind is int:
            chosen[field.name] = draw(VALUES.get(name, st.integers(0, 12)))
    return chosen


def of_selected_blocks(module: Mechanism) -> None:
    """What the selected branch of nsa sees, alone."""
    if module.name == "nsa":
        module.gate.zero_()
        module.gate_bias.fill_(-1e4)[:, 1] = 1e4


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ALWAYS)
@drawn(60)
@given(data=st.data())
def test_what_the_help_says_is_visible_is(name: str, causal: bool, data: st.DataObject) -> None:
    options = data.draw(options_of(name))
    module = None
    with contextlib.suppress(OptionError):
        module = build_mechanism(name, num_heads=HEADS, head_dim=WIDTH, max_length=LENGTH, **options).double().eval()
    if module is None or module.causal not in ("both", causal):
        return
    with torch.no_grad():
        of_selected_blocks(module)
        q, k = torch.randn(2, 1, HEADS, LENGTH, WIDTH, dtype=torch.float64)
        seen = module.weights(q, k, causal=causal)[0] > 0
    h, places = torch.arange(HEADS)[:, None, None], torch.arange(LENGTH)
    expected = ALWAYS[name](module.options, h, places[:, None], places, causal).expand(HEADS, -1, -1)
    if causal:
        expected = expected & (places <= places[:, None])
    missing = (expected & ~seen).nonzero()
    assert not len(missing), f"{options}: (head, query, key) {missing[0].tolist()} and {len(missing) - 1} more are hidden"
