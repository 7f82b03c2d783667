"""Paths for the CPU: bands and sorted chunks by its fused flash kernel."""
