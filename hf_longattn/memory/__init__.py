"""Decode caches with only those keys that a layer's mechanism still needs, and memory between segments."""

from .attention_cache import STATE_LAYER, AttentionCacheLayer, SparseCacheLayer, StateLayer
from .decode_cache import FULL, decode_layer_types, window_layer_type
from .segment_memory import CacheMemory, SegmentMemory, TokenMemory

__all__ = [
    "FULL",
    "STATE_LAYER",
    "AttentionCacheLayer",
    "CacheMemory",
    "SegmentMemory",
    "SparseCacheLayer",
    "StateLayer",
    "TokenMemory",
    "decode_layer_types",
    "window_layer_type",
]
