"""What an engine is asked for: masks and score terms as functions, a band with global tokens, or tiles of listed pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MaskMod = Callable[[Any, Any, Any, Any], Any]
"""``mask_mod(b, h, q_idx, kv_idx) -> bool tensor``, as in ``torch.nn.attention.flex_attention``."""


ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""``score_mod(score, b, h, q_idx, kv_idx) -> score``, as in ``torch.nn.attention.flex_attention``."""


UNBOUNDED = 1 << 40


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Query i visits the keys ``i - left … i + right``; with ``has_globals`` also the global columns, which every query sees, and with
    ``global_rows`` the global tokens see every key in turn."""

    left: int
    right: int
    causal: bool
    has_globals: bool = False
    global_rows: bool = True

    @classmethod
    def window(cls, width: int, causal: bool) -> Pattern:
        """A window of total ``width``: half on each side, or all of it back (itself included) when causal."""
        return cls(width - 1, 0, True) if causal else cls(width // 2, width // 2, False)

    @classmethod
    def everything(cls, causal: bool) -> Pattern:
        """All keys, or all earlier ones when causal."""
        return cls(UNBOUNDED, 0 if causal else UNBOUNDED, causal)

    @property
    def width(self) -> int:
        """Keys in the band of one query."""
        return self.left + self.right + 1

    @property
    def bounded(self) -> bool:
        """Whether the band is finite on both sides, so that most of a long input is outside."""
        return max(self.left, self.right) < UNBOUNDED

    def covers(self, q_len: int, kv_len: int) -> bool:
        """Whether the band contains every key, for queries that are the last ``q_len`` of ``kv_len`` positions."""
        return self.left >= kv_len - 1 and (self.causal or self.right >= q_len - 1)

    def band_mod(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        """The band as a ``mask_mod``."""
        return (q_idx - kv_idx <= self.left) & (kv_idx - q_idx <= self.right)

    def visible_mod(self, global_mask: Tensor | None) -> MaskMod:
        """Band or global, without padding; causality bounds the global part as well."""
        if global_mask is None:
            return self.band_mod

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            seen = self.band_mod(b, h, q_idx, kv_idx) | global_mask[b, kv_idx]
            if self.global_rows:
                seen = seen | global_mask[b, q_idx]
            return seen & (kv_idx <= q_idx) if self.causal else seen

        return mod


@dataclasses.dataclass(frozen=True)
class DistanceBias:
    """A ``score_mod`` of the distance and the head: adds ``table[h, (q_idx - kv_idx) + ahead]``.

    The CPU's band engine adds the table to its blocks; to every other engine it is an ordinary ``score_mod``.

    table: ``(H, back + ahead + 1)`` for the distances ``-ahead … back``; distances beyond these are clamped.
    """

    table: Tensor
    ahead: int

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score + self.table[h, (q_idx - kv_idx + self.ahead).clamp(0, self.table.shape[1] - 1)]

    def of_heads(self, heads: Sequence[int]) -> DistanceBias:
        """The bias of some heads, renumbered from 0."""
        return DistanceBias(self.table[list(heads)], self.ahead)

    def over(self, distance: Tensor) -> Tensor:
        """``(H, rows, columns)`` for distances ``(rows, columns)``."""
        return self.table[:, (distance + self.ahead).clamp(0, self.table.shape[1] - 1)]

    def add_gradient(self, total: Tensor, distance: Tensor, of_scores: Tensor) -> None:
        """Add to ``total``, shaped as the table, the gradient of scores ``(H, rows, columns)`` at these distances."""
        index = (distance + self.ahead).clamp(0, self.table.shape[1] - 1)
        total.index_add_(1, index.flatten(), of_scores.flatten(1).to(total.dtype))


def mod_of_heads(score_mod: ScoreMod | None, heads: Sequence[int]) -> ScoreMod | None:
    """``score_mod`` for a group of heads, renumbered from 0."""
    if score_mod is None or isinstance(score_mod, DistanceBias):
        return None if score_mod is None else score_mod.of_heads(heads)
    numbers = torch.tensor(heads)
    return lambda score, b, h, q_idx, kv_idx: score_mod(score, b, numbers.to(h.device)[h], q_idx, kv_idx)


@dataclasses.dataclass(frozen=True)
class GatherTile:
    """R rows of query–key pairs. Sizes of 1 in the batch and head axes serve every batch item and head.

    queries: ``(B or 1, H or 1, R, Tq)`` int64, positions on the queries' axis; -1 is an empty slot. No query twice in one tile.
    keys: ``(B or 1, H or 1, R, Tk)`` int64, positions on the keys' axis; -1 is an empty slot.
        The tensors must not be written to afterwards: the layout is computed once and cached for them.
    causal: no keys after the query.
    inside: ``(low, high)``: only pairs with ``low <= query - key <= high``.
    outside: ``(low, high)``: no pairs with ``low <= query - key <= high``; another tile has them.
    bias: ``(B or 1, H or 1, R or 1, Tq or 1, Tk)``: bool (False hides a pair) or float added to the scores; may require gradients.

    A key listed twice for a query, in one row or in two tiles, counts twice: hide it by ``outside`` or ``bias`` where the definition counts
    it once.
    """

    queries: Tensor
    keys: Tensor
    causal: bool = False
    inside: tuple[int, int] | None = None
    outside: tuple[int, int] | None = None
    bias: Tensor | None = None


def rows_of(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """Positions 0 … length-1 in rows of ``size``, ``(1, 1, R, size)``, the last row padded with -1."""
    count = -(-length // size)
    places = torch.arange(count * size, device=device)
    return torch.where(places < length, places, -1).view(1, 1, count, size)
