"""Publish models on the Hub: cards from measured results, the file for `trust_remote_code`, and the upload."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import public_names

if TYPE_CHECKING:
    from .card import AUTO_CLASSES as AUTO_CLASSES
    from .card import MeasuredResult as MeasuredResult
    from .card import from_source as from_source
    from .card import model_card as model_card
    from .card import next_step as next_step
    from .card import origin_of as origin_of
    from .card import write_model_card as write_model_card
    from .push import PushReport as PushReport
    from .push import check_login as check_login
    from .push import push_model as push_model
    from .remote_code import write_remote_code as write_remote_code

__getattr__, __all__ = public_names(__name__)
