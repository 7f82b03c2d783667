"""Mechanisms that choose keys by summaries (means, norms, hashes). A decode cache keeps the summaries next to the keys.

A sequence is cut into units of ``summary_unit`` tokens, counted from its first real token. A unit's summary depends only on its tokens and
on the next ``summary_ahead`` tokens. It can therefore be computed again at any time, such as when the unit grows or the batch is reordered.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ...engines.common.call import AttentionCall
from ...engines.topk import gather_kv, gathered_kv_attention, term_at
from .base import Mechanism
from .layout import tokens_of

FEW_QUERIES = 32
"""Maximum number of new tokens in a step that uses summaries. Longer pieces of a prompt go through ``forward``."""


@dataclass
class CacheSummaries:
    """The summaries of all keys in a cache, the newest included.

    tables: by name, ``(B, H', units, …)``. Unit u of batch row b starts at column ``starts[b] + u·summary_unit``. Units without tokens hold
        arbitrary finite numbers.
    starts: ``(B,)``, column of each sequence's first real token.
    real: ``(B, N)`` bool, True = real token; ``None`` when all are.
    """

    tables: dict[str, Tensor]
    starts: Tensor
    real: Tensor | None

    def positions(self, q_len: int, kv_len: int) -> Tensor:
        """Positions ``(B, q_len)`` of the last tokens, counted from each sequence's first real token; negative for left padding."""
        return torch.arange(kv_len - q_len, kv_len, device=self.starts.device) - self.starts[:, None]

    def columns(self, positions: Tensor, kv_len: int) -> tuple[Tensor, Tensor]:
        """The columns of ``positions (B, …)``, and whether they hold real tokens: False for padding and outside the sequence."""
        starts = self.starts.view(-1, *[1] * (positions.dim() - 1))
        columns = (positions + starts).clamp(0, kv_len - 1)
        present = (positions >= 0) & (positions + starts < kv_len)
        if self.real is not None:
            present = present & self.real.gather(1, columns.flatten(1)).view(columns.shape)
        return columns, present


class SummarisedMechanism(Mechanism):
    """A mechanism whose causal form uses summaries to choose among all keys of a cache."""

    @property
    @abstractmethod
    def summary_unit(self) -> int | None:
        """Number of tokens per summary (a unit); ``None`` if these options need no summaries."""

    @property
    def summary_ahead(self) -> int:
        """Number of tokens after a unit that its summary also depends on. :meth:`summarise_units` gets them after the unit's own."""
        return 0

    @abstractmethod
    def summarise_units(self, k: Tensor, v: Tensor, real: Tensor, call: AttentionCall) -> dict[str, Tensor]:
        """The summaries of units, given their tokens.

        Args:
            k, v: ``(B, H_kv, m, unit + ahead, D)``; real: ``(B, m, unit + ahead)`` bool, False for padding and for tokens not yet seen.
        Returns:
            Tensors ``(B, H', m, …)`` by name.
        """

    @abstractmethod
    def attend_summarised(self, q: Tensor, k: Tensor, v: Tensor, summaries: CacheSummaries, call: AttentionCall) -> Tensor:
        """Causal attention of the last tokens, ``(B, H, Nq, D)``, equal to ``forward``.

        Args:
            q: ``(B, H, Nq, D)``, at most :data:`FEW_QUERIES`; k, v: ``(B, H_kv, Nk, D)``, the whole cache.
            call: its ``score_mod`` includes the relative positions.
        """


def attend_at(q: Tensor, k: Tensor, v: Tensor, columns: Tensor, seen: Tensor, call: AttentionCall) -> Tensor:
    """Attention of ``q (B, H, Nq, D)`` over the keys at ``columns (B, H, Nq, K)`` of ``k, v (B, H_kv, Nk, D)`` where ``seen`` is True."""
    if call.score_mod is not None:
        seen = term_at(call.score_mod, columns, k.shape[2]).masked_fill(~seen, float("-inf"))
    return gathered_kv_attention(q, gather_kv(k, columns), gather_kv(v, columns), seen, scaling=call.scale, sink_scores=call.sink_scores)


def attend_to_blocks(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, size: int, summaries: CacheSummaries, call: AttentionCall) -> Tensor:
    """Causal attention of the last tokens ``q (B, H, Nq, D)`` over the ``blocks (B, H, Nq, K)`` of ``size`` tokens; -1 is an empty slot."""
    positions = summaries.positions(q.shape[2], k.shape[2])[:, None, :, None]
    places = tokens_of(blocks, size, k.shape[2])
    columns, present = summaries.columns(places, k.shape[2])
    return attend_at(q, k, v, columns, present & (places <= positions), call)
