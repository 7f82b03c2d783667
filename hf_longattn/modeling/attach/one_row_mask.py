"""A padding mask ``(B, N)`` in place of additive masks ``(B, 1, 1, N)``. Some bases make the latter from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...backend import padding_of_row
from ..family.config import runs_mechanisms

if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object


class ReadsPadding(_Module):
    """Mixin before a base's encoder that receives an additive padding mask ``(B, 1, 1, N)``.

    If mechanisms run, its layers receive the padding mask ``(B, N)`` instead, also in graphs."""

    config: Any

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if attention_mask is not None and runs_mechanisms(self):
            attention_mask = padding_of_row(attention_mask)
        return super().forward(hidden_states, attention_mask, *args, **kwargs)
