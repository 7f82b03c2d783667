"""Paths for the CPU: PyTorch's fused flash kernel, and oneDNN's kernels on packed weights."""
