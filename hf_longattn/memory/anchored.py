"""Cache layers that count positions from each sequence's first real token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ..mechanisms.masked import first_real
from .attending import AttendingLayer

NOT_BEGUN = 1 << 40
"""Where a sequence starts whose first real token has not come: behind every column."""


class AnchoredLayer(AttendingLayer, DynamicLayer):
    """Learns from the padding masks where the sequences begin."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.starts: Tensor | None = None
        """``(B,)``: column of the first real token; :data:`NOT_BEGUN` where none has come yet."""
        self._begun = False
        """Whether every sequence has begun, so that ``starts`` stays."""

    def note_padding(self, mask: Tensor | None) -> None:
        if self._begun:
            return
        if self.starts is None:
            self.starts = torch.full((len(self.keys),), NOT_BEGUN, device=self.keys.device)
        first = torch.zeros_like(self.starts) if mask is None else torch.where(mask.bool().any(1), first_real(mask), NOT_BEGUN)
        self.starts = torch.where(self.starts == NOT_BEGUN, first, self.starts)
        self._begun = bool((self.starts != NOT_BEGUN).all())

    def restart(self, rows: Tensor) -> None:
        """The sequences of ``rows (B,)`` bool begin anew; the mask must hide what they have seen."""
        if self.starts is not None:
            self.starts = self.starts.masked_fill(rows.to(self.starts.device), NOT_BEGUN)
            self._begun = False

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            super().batch_repeat_interleave(repeats)
            self.starts = None if self.starts is None else self.starts.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            super().batch_select_indices(indices)
            self.starts = None if self.starts is None else self.starts[indices]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.is_initialized:
            self.batch_select_indices(beam_idx.to(self.device))
