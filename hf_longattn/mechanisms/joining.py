"""How parts of the gathered engine join: a band, global tokens, and a part without the pairs that others have."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ..engines.pattern import GatherTile, MaskMod, Pattern, rows_of

BLOCK = 64
"""Queries per row."""


def band_parts(band: Pattern, length: int, device: torch.device) -> list[GatherTile]:
    """The band of ``band``: every row of queries meets one run of keys."""
    queries = rows_of(length, BLOCK, device)
    left, right = min(band.left, length - 1), min(band.right, length - 1)
    first = torch.arange(queries.shape[2], device=device)[:, None] * BLOCK - left
    keys = first + torch.arange(left + BLOCK + right, device=device)
    keys = torch.where((keys >= 0) & (keys < length), keys, -1)
    return [GatherTile(queries, keys[None, None], causal=band.causal, inside=(-right, left))]


def without(part: GatherTile, band: Pattern | None, mods: Sequence[MaskMod], num_heads: int) -> GatherTile:
    """``part`` without the pairs of ``band`` and without those that any of ``mods`` lets through."""
    mods = list(mods)
    if band is not None:
        low, high = -band.right, band.left
        if part.outside is None:
            part = dataclasses.replace(part, outside=(low, high))
        elif part.outside[0] <= high + 1 and low <= part.outside[1] + 1:
            part = dataclasses.replace(part, outside=(min(low, part.outside[0]), max(high, part.outside[1])))
        else:
            mods.append(band.band_mod)
    if not mods:
        return part
    left_out = _any(mods, part.queries, part.keys, num_heads)
    if part.bias is None:
        bias = ~left_out
    elif part.bias.dtype == torch.bool:
        bias = part.bias & ~left_out
    else:
        bias = part.bias.masked_fill(left_out, float("-inf"))
    return dataclasses.replace(part, bias=bias)


def global_parts(tokens: Tensor, most: int, seen: MaskMod, num_heads: int, causal: bool) -> tuple[GatherTile, ...]:
    """The rows and columns of the global ``tokens (B, N)`` bool, at most ``most`` of an item, without the pairs that ``seen`` lets
    through already."""
    length, device = tokens.shape[1], tokens.device
    if most == 0:
        return ()
    index = tokens.int().argsort(dim=-1, descending=True, stable=True)[:, :most]
    chosen = torch.where(tokens.gather(1, index), index, -1)[:, None, None, :]
    queries = rows_of(length, BLOCK, device)
    keys = chosen.expand(-1, -1, queries.shape[2], -1)
    everything = torch.arange(length, device=device).view(1, 1, 1, -1)
    rows_only = ~_any([seen], chosen, everything, num_heads) & ~tokens[:, None, None, None, :]
    return (
        GatherTile(queries, keys, causal=causal, bias=~_any([seen], queries, keys, num_heads)),
        GatherTile(chosen, everything, causal=causal, bias=rows_only),
    )


def _any(mods: Sequence[MaskMod], queries: Tensor, keys: Tensor, num_heads: int) -> Tensor:
    """Whether any of ``mods`` lets a pair through, ``(B or 1, H or 1, R, Tq, Tk)``; empty slots mean nothing."""
    b = torch.zeros(1, 1, 1, 1, 1, dtype=torch.long, device=queries.device)
    h = torch.arange(num_heads, device=queries.device).view(1, -1, 1, 1, 1)
    q_idx, kv_idx = queries.clamp(min=0)[..., :, None], keys.clamp(min=0)[..., None, :]
    found = mods[0](b, h, q_idx, kv_idx)
    for mod in mods[1:]:
        found = found | mod(b, h, q_idx, kv_idx)
    return found
