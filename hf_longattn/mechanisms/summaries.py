"""Mechanisms that choose by something they know of earlier keys: means, bounds, hashes. A decode cache keeps it beside the keys.

A sequence is cut into units of ``summary_unit`` tokens, counted from its first real token. What is known of a unit depends on its tokens
alone, so that it can be made again at any time: of the unit that still grows, after tokens were taken back, for other batches.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engines.call import ScoreMod
from .base import Mechanism

FEW_QUERIES = 32
"""Most new tokens that are attended one by one with summaries; longer pieces of a prompt go through ``forward``."""


@dataclass
class CacheSummaries:
    """What a cache knows of all keys, the newest included.

    tables: by name ``(B, H', units, …)``; unit u of item b holds the columns ``starts[b] + u·summary_unit`` and following. Units that
        have no token yet hold any finite numbers.
    starts: ``(B,)``, column of each sequence's first real token.
    real: ``(B, N)`` bool, True = real token; ``None`` when all are.
    """

    tables: dict[str, Tensor]
    starts: Tensor
    real: Tensor | None

    def positions(self, q_len: int, kv_len: int) -> Tensor:
        """Positions ``(B, q_len)`` of the last tokens, counted from each sequence's first real one; negative for padding before it."""
        return torch.arange(kv_len - q_len, kv_len, device=self.starts.device) - self.starts[:, None]

    def columns(self, positions: Tensor, kv_len: int) -> tuple[Tensor, Tensor]:
        """Columns of ``positions (B, …)``, and which of them hold a real token; negative positions and padding do not."""
        starts = self.starts.view(-1, *[1] * (positions.dim() - 1))
        columns = (positions + starts).clamp(0, kv_len - 1)
        there = (positions >= 0) & (positions + starts < kv_len)
        if self.real is not None:
            there = there & self.real.gather(1, columns.flatten(1)).view(columns.shape)
        return columns, there


class SummarisedMechanism(Mechanism):
    """A causal mechanism that can attend to a cache of all keys through summaries of them."""

    @property
    @abstractmethod
    def summary_unit(self) -> int | None:
        """Tokens in a unit; ``None`` when these options need no summaries."""

    @abstractmethod
    def summarise_units(self, k: Tensor, v: Tensor, real: Tensor, scaling: float | None) -> dict[str, Tensor]:
        """What is kept of units, given their tokens.

        Args:
            k, v: ``(B, H_kv, m, unit, D)``; real: ``(B, m, unit)`` bool, False for padding and for tokens that have not come yet.
        Returns:
            Tensors ``(B, H', m, …)`` by name.
        """

    @abstractmethod
    def attend_summarised(
        self, q: Tensor, k: Tensor, v: Tensor, summaries: CacheSummaries, *, scaling: float | None, score_mod: ScoreMod | None
    ) -> Tensor:
        """Causal attention of the last tokens, ``(B, H, Nq, D)``, equal to ``forward``.

        Args:
            q: ``(B, H, Nq, D)``, at most :data:`FEW_QUERIES`; k, v: ``(B, H_kv, Nk, D)``, the whole cache.
            score_mod: what is added to the scores, at columns of the cache: the relative positions' term, which ``forward`` gets by a hook.
        """
