"""What to type after a conversion whose result is not exact."""

from __future__ import annotations

import shlex
from pathlib import Path

from .plan import ConversionPlan

__all__ = ["next_step"]


def next_step(plan: ConversionPlan, destination: Path) -> str:
    """The command that trains the result, or what to do where this package has none for its head."""
    if not plan.shape.causal:
        folder = shlex.quote(str(destination))
        return f"python scripts/train_qa.py --model {folder} --max-length {plan.new_length} --output {folder}-qa"
    return f"fine-tune {destination} with transformers' Trainer on texts of up to {plan.new_length} tokens"
