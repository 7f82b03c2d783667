"""Pages: texts with further inputs for every token, such as its box."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .common.base import register_kind
from .text import TextKind


@register_kind
class PageKind(TextKind):
    """Token ids and further arguments of ``forward``, such as boxes (``Family.page``)."""

    def seeded(self, config: Any, ids: Tensor) -> dict[str, Tensor]:
        return self.family.rule.seeded(config, ids.shape[0], ids.shape[1])
