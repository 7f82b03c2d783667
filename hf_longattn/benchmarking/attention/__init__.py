"""The sides that compute attention alone, one per file; importing this registers them, and imports no models: a side imports what it
runs when it is built."""

from . import flex, hf_big_bird, hf_longformer, linformer, nystrom, ours, performer, reformer, sdpa, sdpa_mask, window

__all__ = ["flex", "hf_big_bird", "hf_longformer", "linformer", "nystrom", "ours", "performer", "reformer", "sdpa", "sdpa_mask", "window"]
