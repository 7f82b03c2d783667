"""The implementations of attention alone, one per file. Importing this registers them; each imports what it compares when it is built."""

from . import flex, ours, sdpa

__all__ = ["flex", "ours", "sdpa"]
