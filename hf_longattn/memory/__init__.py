"""Decode caches with only those keys that a layer's mechanism still needs, and memory between segments."""
