"""Metrics: each file is one ``evaluate.Metric`` over a plain function, and also loads by its path with ``evaluate.load``."""
