"""What all implementations of one kind share at one length; making it registers them."""

from __future__ import annotations

from typing import Any

from .case import AttentionInputs, Case


def build_inputs(kind: str, case: Case) -> Any:
    """What all implementations of one kind share at one length. Registers that kind only: attention alone needs no model classes."""
    if kind == "attention":
        from . import attention  # noqa: F401

        return AttentionInputs(case)
    if kind == "image":
        from .grid_models import ImageInputs

        return ImageInputs(case)
    from .models.inputs import ModelInputs

    return ModelInputs(case)
