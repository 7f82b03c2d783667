"""Paths for CUDA devices: compiled flex_attention."""
