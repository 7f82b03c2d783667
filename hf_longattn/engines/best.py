"""The k best of a row of scores, by a rule that leaves nothing to chance: of equal scores the one with the lower index wins."""

from __future__ import annotations

import torch
from torch import Tensor

from .pattern import ScoreMod

SCORE_CELLS = 1 << 19
"""Scores per step of :func:`best_keys`: what a step computes stays within the cache."""


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
    lowest = scores.topk(k, dim=-1).values[..., -1:]
    place = torch.arange(scores.shape[-1], device=scores.device)
    order = torch.where(scores > lowest, place, place + scores.shape[-1]).masked_fill(scores < lowest, 2 * scores.shape[-1])
    chosen = order.topk(k, dim=-1, largest=False).values % scores.shape[-1]
    values, by_score = scores.gather(-1, chosen.sort(-1).values).sort(dim=-1, descending=True, stable=True)
    return values, chosen.sort(-1).values.gather(-1, by_score)


@torch.library.custom_op("hf_longattn::best_keys", mutates_args=())
def best_keys(q: Tensor, k: Tensor, key_mask: Tensor | None, count: int, causal: bool, scale: float) -> Tensor:
    """The ``count`` best keys of every query by q·k, ``(B, H, Nq, count)`` int64, -1 where a query sees fewer.

    Args:
        q, k: ``(B, H, Nq, D)``, ``(B, H, Nk, D)``; the queries are the last Nq positions.
        key_mask: ``(B, Nk)`` bool, True = real token.
    """
    return search_keys(q, k, key_mask, count, causal, scale, None)


@best_keys.register_fake
def _(q, k, key_mask, count, causal, scale):  # type: ignore[no-untyped-def]
    return q.new_empty((*q.shape[:3], count), dtype=torch.int64)


def search_keys(
    q: Tensor, k: Tensor, key_mask: Tensor | None, count: int, causal: bool, scale: float, score_mod: ScoreMod | None
) -> Tensor:
    """As :func:`best_keys`, with a score term. N² scores are computed, and never more than a few rows of them are kept."""
    (batch, heads, q_len, _), kv_len = q.shape, k.shape[2]
    dtype, offset = exact_dtype(q.device), kv_len - q_len
    rows = min(q_len, max(1, SCORE_CELLS // kv_len))
    together = max(1, min(heads, SCORE_CELLS // (kv_len * rows)))
    found = []
    for item in range(batch):
        for head in range(0, heads, together):
            keys = k[item, head : head + together].to(dtype)
            for row in range(0, q_len, rows):
                queries = q[item, head : head + together, row : row + rows].to(dtype)
                found.append(_step(queries, keys, key_mask, count, causal, scale, score_mod, item, head, row + offset))
    steps = -(-q_len // rows)
    columns = [torch.cat(found[i : i + steps], 1) for i in range(0, len(found), steps)]
    return torch.cat(columns).view(batch, heads, q_len, count)


def _step(
    q: Tensor, k: Tensor, key_mask: Tensor | None, count: int, causal: bool, scale: float, score_mod: ScoreMod | None,
    item: int, head: int, first: int,
) -> Tensor:  # fmt: skip
    """The best keys of queries ``(H', n, D)``, which are the positions from ``first`` on, of batch item ``item``, heads from ``head``."""
    stop = first + q.shape[1] if causal else k.shape[1]
    scores = (q @ k[:, :stop].transpose(-1, -2)) * scale
    i = torch.arange(first, first + q.shape[1], device=q.device)[:, None]
    j = torch.arange(stop, device=q.device)[None]
    if score_mod is not None:
        b, h = torch.full((1, 1, 1, 1), item, device=q.device), torch.arange(head, head + q.shape[0], device=q.device).view(1, -1, 1, 1)
        scores = score_mod(scores[None], b, h, i[None, None], j[None, None])[0].to(q.dtype)
    if causal:
        scores = scores.masked_fill(j > i, float("-inf"))
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[item, :stop], float("-inf"))
    index = best(scores, count)
    return torch.nn.functional.pad(index, (0, count - index.shape[-1]), value=-1)
