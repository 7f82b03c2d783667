"""Metrics, one in each file: ``EXAMPLE``, and ``compute(predictions, references)``, which returns scores by name."""
