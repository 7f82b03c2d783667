"""Decode caches that hold no more than a layer's mechanism can reach."""

from .window_cache import decode_layer_types, decode_reach, window_layer_type

__all__ = ["decode_layer_types", "decode_reach", "window_layer_type"]
