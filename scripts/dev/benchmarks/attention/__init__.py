"""The implementations of attention alone, one per file. Importing this registers them; each imports what it compares when it is built."""

from . import flex, hf_big_bird, hf_longformer, linformer, nystrom, ours, performer, reformer, sdpa, sdpa_mask, window

__all__ = ["flex", "hf_big_bird", "hf_longformer", "linformer", "nystrom", "ours", "performer", "reformer", "sdpa", "sdpa_mask", "window"]
