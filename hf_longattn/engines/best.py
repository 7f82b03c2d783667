"""The k best of a row of scores, by a rule that leaves nothing to chance: of equal scores the one with the lower index wins."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .pattern import ScoreMod

SCORE_CELLS = 1 << 19
"""Scores per step of a search: what a step computes stays within the cache."""


def exact_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which choices are made: float64 where the device has it.

    A choice is not continuous, so two scores that differ in the last bits must not swap places with the shape of a batch, its padding or
    the number of queries in a call; in float64 they do not.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def best(scores: Tensor, k: int) -> Tensor:
    """Indices ``(…, min(k, N))`` of the k highest of ``scores (…, N)``, best first; -1 where fewer than k are above -inf.

    Of equal scores the lower index comes first, as in a stable sort.
    """
    length = scores.shape[-1]
    if k >= length:
        values, index = scores.sort(dim=-1, descending=True, stable=True)
        return index.masked_fill(values == float("-inf"), -1)
    values, index = scores.topk(k + 1, dim=-1)
    if torch.compiler.is_compiling() or bool(((values[..., 1:] == values[..., :-1]) & values[..., 1:].isfinite()).any()):
        values, index = _stable(scores, k)
    return index[..., :k].masked_fill(values[..., :k] == float("-inf"), -1)


def _stable(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices of the k best where there are ties: those above the k-th value, then the first ones that equal it."""
    length = scores.shape[-1]
    lowest = scores.topk(k, dim=-1).values[..., -1:]
    place = torch.arange(length, device=scores.device)
    order = torch.where(scores > lowest, place, place + length).masked_fill(scores < lowest, 2 * length)
    chosen = (order.topk(k, dim=-1, largest=False).values % length).sort(-1).values
    values, by_score = scores.gather(-1, chosen).sort(dim=-1, descending=True, stable=True)
    return values, chosen.gather(-1, by_score)


@torch.library.custom_op("hf_longattn::best_keys", mutates_args=())
def best_keys(q: Tensor, k: Tensor, key_mask: Tensor | None, count: int, causal: bool, scale: float) -> Tensor:
    """The ``count`` best keys of every query by q·k, ``(B, H, Nq, count)`` int64, -1 where a query sees fewer.

    Args:
        q, k: ``(B, H, Nq, D)``, ``(B, H, Nk, D)``; the queries are the last Nq positions.
        key_mask: ``(B, Nk)`` bool, True = real token.
    """
    return search_keys(q, k, key_mask, count, causal, scale, None)


@torch.library.custom_op("hf_longattn::best_blocks", mutates_args=())
def best_blocks(q: Tensor, summaries: Tensor, kept: Tensor, count: int, span: int, causal: bool) -> Tensor:
    """The ``count`` best blocks of every query besides its own, ``(B, H, N, count)`` int64, -1 where there are fewer.

    Args:
        q: ``(B, H, N, D)``; query i lies in block ``i // span``.
        summaries: ``(B, H, n, D)``, a block's score is its product with the query.
        kept: ``(B, n)`` bool, blocks that may be chosen.
        causal: choose among the blocks before the query's own.
    """

    def visible(scores: Tensor, item: int, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        own = i // span
        hidden = (j >= own if causal else j == own) | ~kept[item]
        return scores.masked_fill(hidden, float("-inf"))

    return _search(q, summaries, count, visible)


def _fake(q, k, mask, count, *_):  # type: ignore[no-untyped-def]
    return q.new_empty((*q.shape[:3], count), dtype=torch.int64)


best_keys.register_fake(_fake)
best_blocks.register_fake(_fake)


def search_keys(
    q: Tensor, k: Tensor, key_mask: Tensor | None, count: int, causal: bool, scale: float, score_mod: ScoreMod | None
) -> Tensor:
    """As :func:`best_keys`, with a score term. N² scores are computed, and never more than a few rows of them are kept."""
    offset = k.shape[2] - q.shape[2]

    def visible(scores: Tensor, item: int, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        i, scores = i + offset, scores * scale
        if score_mod is not None:
            b = torch.full((1, 1, 1, 1), item, device=q.device)
            h = torch.arange(heads.start, heads.stop, device=q.device).view(1, -1, 1, 1)
            scores = score_mod(scores[None], b, h, i[None, None], j[None, None])[0].to(scores.dtype)
        if causal:
            scores = scores.masked_fill(j > i, float("-inf"))
        return scores if key_mask is None else scores.masked_fill(~key_mask[item, : j.shape[1]], float("-inf"))

    return _search(q, k, count, visible, offset if causal else None)


class _Visible(Protocol):
    def __call__(self, scores: Tensor, item: int, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        """``scores (H', n, m)`` of a batch item's ``heads``, rows ``i (n, 1)`` and columns ``j (1, m)``; -inf where hidden."""


def _search(q: Tensor, k: Tensor, count: int, visible: _Visible, diagonal: int | None = None) -> Tensor:
    """The best of ``q (B, H, N, D) @ kᵀ (B, H, M, D)``; with ``diagonal``, columns behind ``row + diagonal`` are hidden anyway."""
    (batch, heads, length, _), dtype = q.shape, exact_dtype(q.device)
    rows = min(length, max(1, SCORE_CELLS // k.shape[2]))
    together = max(1, min(heads, SCORE_CELLS // (k.shape[2] * rows)))
    found = []
    for item in range(batch):
        for first in range(0, heads, together):
            some = slice(first, min(heads, first + together))
            keys = k[item, some].to(dtype).transpose(-1, -2)
            steps = []
            for row in range(0, length, rows):
                queries = q[item, some, row : row + rows].to(dtype)
                i = torch.arange(row, row + queries.shape[1], device=q.device)[:, None]
                stop = k.shape[2] if diagonal is None else row + queries.shape[1] + diagonal
                j = torch.arange(stop, device=q.device)[None]
                index = best(visible(queries @ keys[..., :stop], item, some, i, j), count)
                steps.append(F.pad(index, (0, count - index.shape[-1]), value=-1))
            found.append(torch.cat(steps, 1))
    return torch.cat(found).view(batch, heads, length, count)
