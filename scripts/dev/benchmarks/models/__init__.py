"""Whole encoders; importing this registers their implementations."""

from . import encoders as encoders
