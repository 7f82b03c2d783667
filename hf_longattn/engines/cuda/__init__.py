"""Paths for CUDA devices: compiled flex_attention and PyTorch's flash-attention operator."""
