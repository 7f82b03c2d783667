"""Paths for CUDA devices: compiled flex_attention, PyTorch's flash-attention operator, and flash-linear-attention."""
