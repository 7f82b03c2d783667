"""Mechanisms with the options of their samples, small enough for texts of tests."""

from __future__ import annotations

from typing import Any

from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from


def sample_of(name: str) -> dict[str, Any]:
    """The mechanism as a config names it."""
    return {"mechanism": name, **mechanism_class(name).about.sample}


def sampled(name: str, max_length: int, **options: Any) -> Mechanism:
    """The mechanism with further options, for four heads of 16 numbers."""
    options = {**mechanism_class(name).about.sample, **options}
    return mechanism_from(name, options, num_heads=4, head_dim=16, max_length=max_length).eval()
