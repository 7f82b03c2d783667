"""Decoding with what each static pattern keeps: the same logits as the whole forward pass, in memory that follows the pattern."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longattn.memory.kept_cache import SLACK
from tests.cases import every_case
from tests.grids import alternately
from tests.reference.small_models import in_one_pass, in_pieces, long_like, padding, plain_model, singly, tokens

PATTERNS: dict[str, tuple[dict[str, Any], int]] = {
    "sinks": ({"mechanism": "window", "window": 9, "num_sinks": 3}, 9 + 3),
    "segments with a memory": ({"mechanism": "transformer_xl", "segment_length": 12, "memory_length": 7}, 12 + 7),
    "dilated, with sinks": ({"mechanism": "window", "window": 5, "dilation": [1, 2, 3, 1], "num_sinks": 2}, 13 + 2),
}
ALL_KEPT: dict[str, dict[str, Any]] = {
    "absolute columns": {"mechanism": "strided", "window": 9, "stride": 7, "columns": "absolute"},
    "summary columns": {"mechanism": "fixed", "block_size": 10, "num_summary": 2},
    "blocks": {"mechanism": "segmented", "block_size": 12, "integration": "none"},
    "relative columns": {"mechanism": "strided", "window": 9, "stride": 7},
    "summaries": {"mechanism": "segmented", "block_size": 12, "integration": "attention"},
}


@every_case(("pattern", "left"), alternately([*PATTERNS, *ALL_KEPT]))
def test_decoding_static_patterns_equals_the_full_forward_pass(pattern: str, left: bool) -> None:
    length = 170
    attention = PATTERNS[pattern][0] if pattern in PATTERNS else ALL_KEPT[pattern]
    plain = plain_model("gpt2", "GPT2LMHeadModel", num_hidden_layers=2)
    longer, ids = long_like(plain, "gpt2", attention, num_hidden_layers=2), tokens(3, length)
    mask = padding(3, length, left=True) if left else torch.ones(3, length, dtype=torch.long)
    cache = DynamicCache(config=longer.config)
    steps = in_pieces(longer, cache, ids, mask, [(0, 60), (60, 67), *singly(67, 90), (90, 140), *singly(140, length)])
    assert (steps - in_one_pass(longer, ids, mask))[mask.bool()].abs().max() < 1e-4
    assert getattr(cache.layers[0], "pruned", False) == (pattern in PATTERNS)


@pytest.mark.thorough
@every_case("pattern", PATTERNS)
def test_a_cache_of_a_static_pattern_is_as_large_as_its_reach(pattern: str) -> None:
    attention, reachable = PATTERNS[pattern]
    cache = DynamicCache(config=long_like(plain_model("gpt2", "GPT2LMHeadModel"), "gpt2", attention).config)
    for _ in range(400):
        new = torch.randn(1, 4, 1, 16)
        cache.update(new, new, 0)
        cache.layers[0].note_padding(None)
        assert cache.layers[0].keys.shape[2] <= reachable + SLACK


def test_attentions_from_a_cache_of_kept_keys_stand_at_their_columns() -> None:
    longer, ids = long_like(plain_model("gpt2", "GPT2LMHeadModel"), "gpt2", PATTERNS["sinks"][0]), tokens(2, 150)
    cache = DynamicCache(config=longer.config)
    in_pieces(longer, cache, ids, torch.ones_like(ids), [(0, 100), *singly(100, 149)])
    with torch.no_grad():
        step = longer(ids[:, 149:], past_key_values=cache, output_attentions=True).attentions[0]
        whole = longer(ids, output_attentions=True, use_cache=False).attentions[0]
    torch.testing.assert_close(step, whole[:, :, -1:], atol=1e-5, rtol=0)
