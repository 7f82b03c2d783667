"""Decode caches that hold no more than a layer's mechanism can reach."""

from .kept_cache import KeptLayer, kept_layer_type
from .layer_types import decode_layer_types, decode_reach
from .window_cache import window_layer_type

__all__ = ["KeptLayer", "decode_layer_types", "decode_reach", "kept_layer_type", "window_layer_type"]
