"""The sparse keys of LSG attention: the few that stand for a cell of tokens, chosen among them or made from them.

A cell of c tokens has m = c / f sparse keys, for a sparsity factor f (Condevaux & Harispe 2022, section 3.2). Head h has, of every cell,

    strided:          the tokens at the places h mod f, h mod f + f, h mod f + 2f, …
    block_strided:    the m tokens from the place m · (h mod f) on
    max_norm:         the m tokens whose keys have the highest norm ‖k_j‖; of equal ones the earlier
    average_pooling:  the mean key and the mean value of every f tokens, one after the other
    lsh:              the mean key and the mean value of every one of m clusters, g_j = argmax [x_j R; -x_j R], R ∈ R^(D × m/2) Gaussian

A cell is a block, c = b, and for max_norm and lsh min(b, S), as in the authors' converter (where that is a multiple of f and divides b).
x_j is the key k_j, or, after the pre-rounds of lsh, the sum of the keys that are in one cluster with k_j: a pre-round hashes into c
clusters, with directions of its own. Padding and global tokens are never chosen and never enter a mean. Choices and clusters are found in
float64 and are constants for the gradient; means are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.byte_cache import KEPT
from ..engines.pattern import ScoreMod
from ..engines.topk import exact_dtype, topk
from ..naming import OPERATORS

CHOSEN = ("strided", "block_strided", "max_norm")
MADE = ("average_pooling", "lsh")


class Cells(NamedTuple):
    """How a sequence is cut: ``size`` tokens in a cell, of which ``factor`` give one sparse key, and whole cells in a block."""

    size: int
    factor: int
    in_block: int = 1

    @property
    def keys(self) -> int:
        """Sparse keys of a cell."""
        return self.size // self.factor

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self.size * self.in_block

    def blocks(self, length: int) -> int:
        return (length + self.block - 1) // self.block

    def count(self, length: int) -> int:
        """Cells of so many blocks as ``length`` tokens begin."""
        return self.blocks(length) * self.in_block


class Made(NamedTuple):
    """Keys that were made from tokens: M = cells · m of them."""

    keys: Tensor
    """``(B, H, M, D)``"""
    values: Tensor
    """``(B, H, M, D)``"""
    real: Tensor
    """Which have a token at all, ``(B, H, M)``."""
    position: Tensor
    """Mean position of their tokens, rounded down, ``(B, H, M)``: where a score term meets them."""


def chosen_keys(selection: str, k: Tensor, real: Tensor | None, cells: Cells) -> Tensor:
    """Positions of the sparse keys of every cell of ``k (B, H, N, D)``, ``(B or 1, H, cells, m)``; -1 is none."""
    heads, length = k.shape[1:3]
    count, many = cells.count(length), cells.keys
    first = torch.arange(count, device=k.device).view(1, 1, -1, 1) * cells.size
    if selection == "max_norm":
        norms = torch.linalg.vector_norm(k.detach(), dim=-1, dtype=exact_dtype(k.device))
        if real is not None:
            norms = norms.masked_fill(~real[:, None], float("-inf"))
        norms = F.pad(norms, (0, count * cells.size - length), value=float("-inf"))
        place = topk(norms.unflatten(2, (count, cells.size)), many)
        return torch.where(place >= 0, place + first, -1)
    turn = (torch.arange(heads, device=k.device) % cells.factor).view(1, -1, 1, 1)
    slot = torch.arange(many, device=k.device)
    place = first + (slot * cells.factor + turn if selection == "strided" else slot + many * turn)
    return torch.where(place < length, place, -1)


def made_keys(selection: str, k: Tensor, v: Tensor, real: Tensor | None, cells: Cells, seed: int, pre_rounds: int) -> Made:
    """The means that stand for the cells of ``k, v (B, H, N, D)``, of the tokens in ``real (B, N)``."""
    (batch, heads, length, _), count, many = k.shape, cells.count(k.shape[2]), cells.keys
    if real is None:
        real = torch.ones(batch, length, dtype=torch.bool, device=k.device)
    if selection == "lsh":
        group = clusters(k.detach(), real, cells.size, many, pre_rounds, seed)
    else:
        group = (torch.arange(length, device=k.device) % cells.size // cells.factor).expand(batch, heads, -1)
    missing = count * cells.size - length
    group = F.pad(group.masked_fill(~real[:, None], -1), (0, missing), value=-1).unflatten(2, (count, cells.size))
    member = group[..., None, :] == torch.arange(many, device=k.device)[:, None]  # (B, H, cells, m, b)
    number = member.sum(-1)
    precise = torch.promote_types(k.dtype, torch.float32)
    share = member.to(precise) / number.clamp(min=1)[..., None]
    keys, values = (
        (share.to(x.dtype) @ F.pad(x, (0, 0, 0, missing)).unflatten(2, (count, cells.size))).flatten(2, 3).to(x.dtype) for x in (k, v)
    )
    places = torch.arange(count * cells.size, device=k.device).view(count, 1, cells.size)
    position = (member * places).sum(-1) // number.clamp(min=1)
    return Made(keys, values, (number > 0).flatten(2), position.flatten(2))


@torch.library.custom_op(f"{OPERATORS}::lsg_clusters", mutates_args=())
def clusters(k: Tensor, real: Tensor, size: int, many: int, pre_rounds: int, seed: int) -> Tensor:
    """The cluster, below ``many``, of every key ``(B, H, N, D)`` in its cell of ``size`` tokens: ``(B, H, N)`` int64."""
    (batch, heads, length, width), count = k.shape, -(-k.shape[2] // size)
    place = torch.arange(size, device=k.device)
    if many in (1, size):  # one mean of all, or every token by itself
        return (place % many).repeat(count)[:length].expand(batch, heads, -1).clone()
    rounds = [size] * pre_rounds + [many]
    keys = k.to(exact_dtype(k.device)).masked_fill(~real[:, None, :, None], 0.0)
    found = F.pad(keys, (0, 0, 0, count * size - length)).unflatten(2, (count, size))
    group = place.expand(batch, heads, count, -1)
    for clustered, turned in zip(rounds, directions(seed, heads, width, rounds, k.device), strict=True):
        products = found @ turned[:, None]
        index = torch.cat([products, -products], -1).argmax(-1)
        group = index.gather(-1, group)
        if clustered == size:  # a further round hashes the clusters' sums
            found = torch.zeros_like(found).scatter_add(3, index[..., None].expand_as(found), found)
    return group.flatten(2)[:, :, :length].contiguous()


@clusters.register_fake
def _(k, real, size, many, pre_rounds, seed):  # type: ignore[no-untyped-def]
    return k.new_empty(k.shape[:3], dtype=torch.int64)


def directions(seed: int, heads: int, head_dim: int, rounds: Sequence[int], device: torch.device) -> list[Tensor]:
    """R of every round, which has so many clusters, ``(H, D, clusters / 2)`` in float64: the same for a seed on every device."""

    def make() -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(heads, head_dim, many // 2, generator=generator, dtype=torch.float64, device="cpu") for many in rounds]
        return [turned.to(device, exact_dtype(device)) for turned in drawn]

    return KEPT.get(("rotations of lsg", seed, heads, head_dim, tuple(rounds), device), make)


def at_made_keys(score_mod: ScoreMod | None, length: int, position: Tensor) -> ScoreMod | None:
    """``score_mod`` for keys of which those from ``length`` on were made, at ``position (B, H, M)``."""
    if score_mod is None:
        return None

    def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        place = position[b, h, (kv_idx - length).clamp(min=0)]
        return score_mod(score, b, h, q_idx, torch.where(kv_idx < length, kv_idx, place))

    return mod
