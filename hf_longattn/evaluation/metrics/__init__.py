"""Metrics, one in each file.

A file has ``compute(predictions, references)``, which returns scores by name, and ``EXAMPLE``, which tests use.
"""
