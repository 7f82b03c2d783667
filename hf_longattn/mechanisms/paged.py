"""The best keys of a cache by bounds of its pages (Tang et al. 2024, Quest, section 3.3), here without approximation.

A page holds 16 keys, of which the elementwise least and greatest are kept. No key of a page scores higher than

    bound = Σ_d max(q_d · low_d, q_d · high_d)

The pages with the highest bounds are scored; the k-th score found is a threshold, and every page whose bound reaches it is scored as well.
What is left out lies below the k-th score, so the choice is that of a search over all keys, with the same rule for ties.

How many pages must be visited depends on the keys. For k = 64 of 32768 keys, heads of 64: random normal keys 100 %; keys of the layers of
assets/bert-python-512 over source text 99.5 %, 100 %, 100 % and 100 %; keys that lie close together within a page, a few. So the bounds are
tried now and then, and used as long as they leave most pages out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..engines.best import best, exact_dtype
from ..engines.narrowing import product_margin
from ..engines.picked import pick
from .summarised import Summaries

PAGE = 16
"""Keys in a page."""
FIRST = 4
"""Pages scored for the threshold, besides those that k keys fill."""
WORTHWHILE = 1 / 3
"""Greatest share of the pages that is visited; reading more of them one by one costs as much as all keys in a row."""
LEAST = 2048
"""Shortest cache, in tokens, for which bounds are tried."""
AGAIN = 256
"""Tokens after which bounds that left too little out are tried again."""


def page_tables(k: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Of pages ``k (B, H_kv, m, 16, D)`` with ``real (B, m, 16)``: least and greatest elements ``(B, H_kv, m, D)`` and the greatest length
    of a key ``(B, H_kv, m)``."""
    there = real[:, None, ..., None]
    low, high = k.masked_fill(~there, float("inf")).amin(3), k.masked_fill(~there, float("-inf")).amax(3)
    empty = ~there.any(3)
    lengths = torch.linalg.vector_norm(k.masked_fill(~there, 0), dim=-1, dtype=torch.float32)
    return {"low": low.masked_fill(empty, 0), "high": high.masked_fill(empty, 0), "longest": lengths.amax(-1)}


def longest_key(summaries: Summaries, kv_len: int) -> Tensor:
    """Greatest length of all keys, ``(B, H_kv)``."""
    lengths = summaries.tables["longest"]
    pages = torch.arange(lengths.shape[2], device=lengths.device) * PAGE
    return torch.where(pages <= summaries.positions(1, kv_len)[:, None], lengths, 0).amax(-1)


def paged_best(q: Tensor, k: Tensor, summaries: Summaries, count: int, scale: float) -> Tensor | None:
    """Columns of the ``count`` best keys of every query, ``(B, H, Nq, count)`` in rising order, -1 where a query sees fewer.

    ``None`` when the cache is short, or when the bounds leave too little out: now, or lately.
    """
    kv_len, notes = k.shape[2], summaries.notes
    if kv_len < max(LEAST, 4 * count) or (notes.get("visited", 0.0) > WORTHWHILE and 0 <= kv_len - notes["tried"] < AGAIN):
        return None
    positions = summaries.positions(q.shape[2], kv_len)[:, None, :, None]
    bounds = _bounds(q, summaries, positions, longest_key(summaries, kv_len), scale)
    scores, _ = _scores(q, k, summaries, bounds.topk(-(-count // PAGE) + FIRST).indices, positions, scale)
    threshold = scores.topk(count).values[..., -1:]
    most = int(((bounds >= threshold) & (bounds > float("-inf"))).sum(-1).max())
    notes["visited"], notes["tried"] = most / bounds.shape[-1], kv_len
    if most > WORTHWHILE * bounds.shape[-1]:
        return None
    scores, columns = _scores(q, k, summaries, bounds.topk(max(most, -(-count // PAGE))).indices.sort(-1).values, positions, scale)
    chosen = best(scores, count)
    return torch.where(chosen < 0, -1, columns.gather(-1, chosen.clamp(min=0))).sort(-1).values


def _bounds(q: Tensor, summaries: Summaries, positions: Tensor, longest: Tensor, scale: float) -> Tensor:
    """What no key of a page exceeds, ``(B, H, Nq, pages)`` float32; -inf for pages behind the query."""
    low, high = (summaries.tables[name].float().transpose(-1, -2) for name in ("low", "high"))
    grouped = (q.float() * scale).unflatten(1, (low.shape[1], -1)).flatten(2, 3)
    bounds = (grouped.clamp(min=0) @ high + grouped.clamp(max=0) @ low).view(*q.shape[:3], -1)
    # Two products of vectors that are at most √PAGE times as long as a key.
    rounding = 2 * PAGE**0.5 * product_margin(q, longest.repeat_interleave(q.shape[1] // low.shape[1], 1), scale)
    first = torch.arange(bounds.shape[-1], device=q.device) * PAGE
    return (bounds + rounding).masked_fill(first > positions, float("-inf"))


def _scores(q: Tensor, k: Tensor, summaries: Summaries, pages: Tensor, positions: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Exact scores of all keys of ``pages (B, H, Nq, p)``, -inf where there is none to be seen, and the keys' columns."""
    places = (pages[..., None] * PAGE + torch.arange(PAGE, device=q.device)).flatten(3)
    columns, there = summaries.columns(places, k.shape[2])
    exact = exact_dtype(q.device)
    scores = (pick(k, columns).to(exact) @ q.to(exact)[..., None])[..., 0] * scale
    return scores.masked_fill(~(there & (places <= positions)), float("-inf")), columns
