"""How much memory a cache holds."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from hf_longattn import LongGPT2Config, LongGPT2Model
from hf_longattn.memory import cache_bytes


def test_memory_is_counted_once_however_often_it_is_seen() -> None:
    cache, keys = DynamicCache(), torch.zeros(1, 2, 8, 4)
    cache.update(keys, keys, 0)
    held = keys.untyped_storage().nbytes()
    assert cache_bytes(cache) == 2 * held
    assert cache_bytes([keys, keys[:, :1], {"again": keys}]) == held


@pytest.mark.parametrize("mechanism", ["window", "hybrid"])
def test_the_last_tokens_of_a_prompt_do_not_hold_all_of_it(mechanism: str) -> None:
    config = LongGPT2Config(n_embd=8, n_head=2, n_layer=1, n_positions=1024, long_attention={"mechanism": mechanism, "window": 8})
    sizes = []
    for length in (64, 1024):
        cache = LongGPT2Model(config).eval()(torch.zeros(1, length, dtype=torch.long), use_cache=True).past_key_values
        sizes.append(cache_bytes(cache))
    assert sizes[0] == sizes[1]
