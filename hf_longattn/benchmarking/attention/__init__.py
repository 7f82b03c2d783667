"""The sides that compute attention alone, one per file; importing this registers them."""

from . import flex, hf_longformer, ours, sdpa, sdpa_mask, window

__all__ = ["flex", "hf_longformer", "ours", "sdpa", "sdpa_mask", "window"]
