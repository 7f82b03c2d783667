"""Cache layers as wide as the window."""

from __future__ import annotations

import torch
from transformers import DynamicCache, StaticCache

from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.memory import decode_layer_types, decode_reach
from hf_longattn.memory.static_cache import in_text_order, slot_columns
from tests.cases import every_case
from tests.reference.small_models import long_config


def test_the_decoding_reach_of_a_layer_is_that_of_its_mechanism() -> None:
    config = LongAttentionConfig("window", window=64, layers={1: {"window": 8}, 2: {"mechanism": "full"}, 3: {"mechanism": "longformer"}})
    assert [decode_reach(config, layer) for layer in range(4)] == [64, 8, None, None]


def test_layers_of_windows_have_window_cache_types() -> None:
    config = LongAttentionConfig("window", window=64, layers={1: {"mechanism": "full"}})
    assert decode_layer_types(config, 3) == ["longattn_window_64", "full_attention", "longattn_window_64"]
    assert decode_layer_types(LongAttentionConfig("full"), 3) is None


def test_a_window_cache_returns_the_keys_that_the_window_sees() -> None:
    cache = DynamicCache(config=long_config("gpt2", {"mechanism": "window", "window": 6}))
    keys = torch.randn(2, 4, 40, 16)
    for i in range(40):
        found, _ = cache.update(keys[:, :, i : i + 1], keys[:, :, i : i + 1], 0)
        assert torch.equal(found, keys[:, :, max(0, i - 5) : i + 1])
    assert cache.get_seq_length() == 40


@every_case("pieces", [[1] * 40, [9, *[1] * 31], [3, 2, 1, 1, 4, 20, 1, 8], [40]], ids=str)
def test_a_static_window_cache_is_a_ring_that_says_where_its_tokens_are(pieces: list[int]) -> None:
    cache = StaticCache(config=long_config("gpt2", {"mechanism": "window", "window": 6}), max_cache_len=100)
    keys, at = torch.randn(2, 4, 40, 16), 0
    layer = cache.layers[0]
    for count in pieces:
        place, at = None if layer.keys is None else layer.keys.data_ptr(), at + count
        found, _ = cache.update(keys[:, :, at - count : at], keys[:, :, at - count : at], 0)
        kept = slot_columns(layer, count, found.shape[2]).find() if found.shape[2] > count else None
        where = torch.arange(count) if kept is None else kept[1]
        assert torch.equal(found[:, :, where < at], keys[:, :, where[where < at]])
        seen = set(range(max(0, at - 5 - count), at))  # by the first of the new tokens, and all of them
        assert seen <= set(where.tolist())
        assert kept is None or kept[0].tolist() == list(range(at - count, at))
        assert place in (None, layer.keys.data_ptr())
    assert cache.get_seq_length() == 40
    ordered, _ = in_text_order(layer, layer.keys, layer.values, 1)
    assert torch.equal(ordered, keys[:, :, -6:])


def test_a_window_cache_returns_a_longer_prompt_whole() -> None:
    cache = DynamicCache(config=long_config("gpt2", {"mechanism": "window", "window": 6}))
    keys = torch.randn(1, 4, 40, 16)
    assert torch.equal(cache.update(keys, keys, 1)[0], keys)
    assert cache.layers[1].keys.shape[2] == 5
