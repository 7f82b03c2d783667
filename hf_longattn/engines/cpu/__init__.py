"""Paths for the CPU, on PyTorch's fused flash kernel."""
