"""Publish models on the Hub: model cards with measured results, the file for `trust_remote_code`, and the upload."""

# ruff: noqa: F401 (names for other packages)
from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import public_names

if TYPE_CHECKING:
    from .card import AUTO_CLASSES, from_source, model_card, next_step, origin_of, write_model_card
    from .push import PushReport, check_login, push_model, write_remote_code

__getattr__, __all__ = public_names(__name__)
