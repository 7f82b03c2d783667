"""The implementations of attention alone, one per file. Importing this registers them; each imports what it compares when it is built."""

from . import flex, hf_longformer, ours, sdpa, window

__all__ = ["flex", "hf_longformer", "ours", "sdpa", "window"]
