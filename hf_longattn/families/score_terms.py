"""For bases whose attention adds terms of its own to the scores."""

from __future__ import annotations

from torch import nn

from ..errors import OptionError
from ..mechanisms.base import Mechanism


def refuse_without_scores(model: nn.Module) -> None:
    """Raise :class:`OptionError` where a mechanism below ``model`` has no scores to which the base's relative positions could be added."""
    scoreless = [one.name for one in model.modules() if isinstance(one, Mechanism) and not one.takes_score_mod]
    if scoreless:
        raise OptionError(
            f"{type(model).__name__} adds relative positions to its attention scores, but mechanism {scoreless[0]!r} has no scores; "
            "choose a mechanism over scores, for example mechanism='window'."
        )
