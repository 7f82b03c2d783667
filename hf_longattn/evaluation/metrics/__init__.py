"""Metrics as ``evaluate`` modules; each file also loads by its path with ``evaluate.load``."""
