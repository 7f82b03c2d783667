"""Decode caches that hold only the keys that each layer's mechanism still needs, and memory between segments."""

from .cache_layer import AttentionCacheLayer, cache_bytes
from .kept_cache import SparseCacheLayer, sparse_layer_type
from .layer_types import FULL, decode_layer_types, decode_reach
from .segment_memory import CacheMemory, SegmentMemory, TokenMemory
from .state_cache import STATE_LAYER, StateLayer
from .window_cache import window_layer_type

__all__ = [
    "FULL",
    "STATE_LAYER",
    "AttentionCacheLayer",
    "CacheMemory",
    "SparseCacheLayer",
    "SegmentMemory",
    "StateLayer",
    "TokenMemory",
    "cache_bytes",
    "decode_layer_types",
    "decode_reach",
    "sparse_layer_type",
    "window_layer_type",
]
