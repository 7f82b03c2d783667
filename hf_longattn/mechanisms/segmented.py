"""Attention inside blocks of b tokens, counted from the first real token, and what each block knows of the others.

With B(i) = ⌊i/b⌋ query i sees, under one softmax,

    none       the keys of its own block
    previous   also those of the block before (and, bidirectional, of the next block): Qiu et al. 2020, BlockBERT (Blockwise), whose
               heads of identical and of shifted block indices are here the keys of one head
    pooled     the keys of its own block, and one summary, the mean key and value, of each other block (each earlier one when causal)
    attention  the same with summaries weighed by attention; see :mod:`hf_longattn.mechanisms.segmented`

and keys j <= i only in the causal form. One softmax over a block's own keys and the others' summaries is the form of Combiner
(Ren et al. 2021, section 4.1, Combiner-Fixed). A summary is an average of values, so it multiplies the values like any weight: spread
over the tokens of its block.

With p the weights of a block's real tokens, a summary is  k̄ = Σ_j p_j k_j,  v̄ = Σ_j p_j v_j, where

    pooled:     p_j = 1 / (real tokens of the block)
    attention:  p = softmax_j(m · k_j · scale)  with m the mean key of the block

The second is the conditional expectation over a region of Combiner (Ren et al. 2021, section 3.1), whose region query is here the mean of
the keys instead of the queries, so that a decode cache holds all that it needs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.call import AttentionCall, GatherTile, MaskMod, ScoreMod, rows_of
from ..engines.dense import dense_attention, index_grid, products, repeat_heads
from ..engines.dispatch import DENSE_MASKED, choose_pairs
from ..engines.gathered import gathered_attention
from ..engines.topk import gather_kv, term_at
from .base import pad_queries, softmax_over, visible_to_all
from .layout import WIDE_ROW, block_sizes, cells, in_rows, prefixes, triangle
from .masked import GatheredMechanism
from .options import Options, one_of, option, positive
from .registry import register_mechanism
from .summaries import CacheSummaries, SummarisedMechanism

INTEGRATIONS = ("none", "previous", "pooled", "attention")
SUMMARISING = ("pooled", "attention")


@dataclasses.dataclass(frozen=True)
class SegmentedOptions(Options):
    block_size: int = option(256, "tokens in a block", "tokens")
    integration: str = option(
        "previous",
        "what a block sees of the others: 'none'; 'previous' (bidirectional: both neighbours); 'pooled': a mean key and value of each; "
        "'attention': a key and value of each, weighed by attention to its mean key",
    )

    def check(self) -> None:
        positive("segmented", "block_size", self)
        one_of("segmented", "integration", self.integration, INTEGRATIONS)

    def is_mask(self) -> bool:
        return self.integration not in SUMMARISING


@register_mechanism("segmented")
class Segmented(SummarisedMechanism, GatheredMechanism):
    """Blocks, and the neighbouring blocks or summaries of all others."""

    summary = "softmax inside blocks; the others unseen, neighbours only, or as pooled summaries"
    paper = "Qiu et al. 2020, BlockBERT; summaries: Ren et al. 2021, Combiner, §4.1"
    cost = "N·b, with summaries N·(b+N/b)"
    exact_when = "block_size ≥ N; integration = 'previous': 2·block_size ≥ N"
    options_type = SegmentedOptions
    sample: ClassVar[dict[str, Any]] = {"block_size": 24, "integration": "pooled"}

    @classmethod
    def covering(cls, length: int, causal: bool) -> dict[str, Any]:
        return {"block_size": length}

    options: SegmentedOptions

    @property
    def summarises(self) -> bool:
        """Whether other blocks are seen as summaries."""
        return not self.options.is_mask()

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        """Which keys have a weight; with summaries these are all (earlier) ones."""
        size, reached = self.options.block_size, self._neighbours

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            away = q_idx // size - kv_idx // size
            return away == away if self.summarises else (away <= reached) & (away >= -reached)

        return mod

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        size = self.options.block_size
        blocks = rows_of(length, size, device)[0, 0]
        if self.options.integration == "none":
            return tuple(cells(blocks, blocks, causal=causal))
        if self.options.integration == "previous":
            before, behind = F.pad(blocks, (0, 0, 1, 0), value=-1)[:-1], F.pad(blocks, (0, 0, 0, 1), value=-1)[1:]
            keys = [before, blocks] if causal else [before, blocks, behind]
            return tuple(cells(blocks, torch.cat(keys, 1), causal=causal))
        return (*cells(blocks, blocks, causal=causal), *_summary_parts(blocks, length, causal))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        if not self.summarises or self.covers(k.shape[2], call.causal):
            return super().forward(q, k, v, call)
        q_len, kv_len, causal = q.shape[2], k.shape[2], call.causal
        made = summarise(k, v, call.key_mask, self.options.block_size, *self._pooling(call.scale_for(q.shape[-1])))
        k, v = (repeat_heads(torch.cat(pair, 2), q.shape[1]) for pair in ((k, made.keys), (v, made.values)))
        call = call.replace(score_mod=at_summaries(call.score_mod, kv_len, made.position), causal=False)
        if call.key_mask is not None:
            call = call.with_mask(torch.cat([call.key_mask, made.real], 1))
        if choose_pairs(q, k[:, :, :kv_len], call) == DENSE_MASKED:
            places = torch.arange(kv_len - q_len, kv_len, device=q.device).view(1, 1, -1, 1)
            return dense_attention(q, k, v, call, mask_mod=self._extended_mod(kv_len, causal), q_idx=places)
        parts = self.plan(kv_len, causal, q.device)
        return gathered_attention(pad_queries(q, kv_len), k, v, parts, call)[:, :, kv_len - q_len :]

    def _pooling(self, scale: float) -> tuple[bool, float]:
        return self.options.integration == "attention", scale

    @property
    def summary_unit(self) -> int | None:
        return self.options.block_size if self.summarises else None

    def summarise_units(self, k: Tensor, v: Tensor, real: Tensor, scaling: float | None) -> dict[str, Tensor]:
        """Key and value of every block, ``(B, H_kv, m, D)``, whether it has real tokens, and their mean place, ``(B, 1, m)``."""
        keys, values = pool_blocks(k, v, real, *self._pooling(k.shape[-1] ** -0.5 if scaling is None else scaling))
        middle = (real * torch.arange(real.shape[-1], device=real.device)).sum(-1) // real.sum(-1).clamp(min=1)
        return {"keys": keys, "values": values, "filled": real.any(-1)[:, None], "middle": middle[:, None]}

    def attend_summarised(
        self, q: Tensor, k: Tensor, v: Tensor, summaries: CacheSummaries, *, scaling: float | None, score_mod: ScoreMod | None
    ) -> Tensor:
        size, heads = self.options.block_size, q.shape[1]
        keys, values = (repeat_heads(summaries.tables[name], heads) for name in ("keys", "values"))
        positions = summaries.positions(q.shape[2], k.shape[2])[:, None, :, None]
        block = torch.div(positions, size, rounding_mode="floor")
        places = torch.where(block < 0, -1, block * size + torch.arange(size, device=q.device)).expand(-1, heads, -1, -1)
        columns, there = summaries.columns(places, k.shape[2])
        earlier = (torch.arange(keys.shape[2], device=q.device) < block) & summaries.tables["filled"][:, :, None]
        own = products(q[..., None, :], gather_kv(k, columns))[..., 0, :]
        scores = torch.cat([own, products(q, keys)], -1)
        scores = scores * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        if score_mod is not None:
            middles = torch.arange(keys.shape[2], device=q.device) * size + summaries.tables["middle"][:, 0] + summaries.starts[:, None]
            meant = middles.clamp(0, k.shape[2] - 1)[:, None, None].expand(-1, heads, q.shape[2], -1)
            scores = scores + term_at(score_mod, torch.cat([columns, meant], -1), k.shape[2])
        seen = torch.cat([there & (places <= positions), earlier.expand(-1, heads, -1, -1)], -1)
        weights = softmax_over(scores, seen).to(v.dtype)
        return (weights[..., None, :size] @ gather_kv(v, columns))[..., 0, :] + weights[..., size:] @ values

    def _extended_mod(self, length: int, causal: bool) -> MaskMod:
        """Which of the keys, and of the summaries after them, a query sees."""
        size = self.options.block_size

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            own, block = q_idx // size, kv_idx - length
            inside = (kv_idx < length) & (kv_idx // size == own)
            other = (block >= 0) & (block != own)
            return (inside & (kv_idx <= q_idx)) | (other & (block < own)) if causal else inside | other

        return mod

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        if not self.summarises:
            return super().dense_weights(q, k, call)
        (batch, heads, q_len, head_dim), kv_len, size = q.shape, k.shape[2], self.options.block_size
        k = repeat_heads(k, heads)
        by_attention, scale = self._pooling(call.scale_for(head_dim))
        b, h, q_idx, kv_idx = index_grid(batch, heads, q_len, kv_len, q.device)
        real = q.new_ones(batch, kv_len, dtype=torch.bool) if call.key_mask is None else call.key_mask
        # How a block weighs its tokens, (B, H, M, Nk): spreads a summary's weight, and pools the keys.
        block = torch.arange((kv_len + size - 1) // size, device=q.device)
        member = (real[:, None, None, :] & (kv_idx // size == block[:, None])).expand(batch, heads, -1, -1)
        spread = softmax_over(torch.zeros_like(member, dtype=k.dtype), member)
        if by_attention:
            spread = softmax_over((spread @ k) @ k.transpose(-1, -2) * scale, member)
        position = (member * kv_idx).sum(-1) // member.sum(-1).clamp(min=1)
        scores, pooled = (q @ keys.transpose(-1, -2) * scale for keys in (k, spread @ k))
        if call.score_mod is not None:
            scores, pooled = call.score_mod(scores, b, h, q_idx, kv_idx), call.score_mod(pooled, b, h, q_idx, position[:, :, None, :])
        own = q_idx // size
        inside = (kv_idx // size == own) & visible_to_all(q, k, call)
        other = member.any(-1)[:, :, None, :] & ((block < own) if call.causal else (block != own))
        seen = torch.cat([inside.expand(scores.shape), other.expand(pooled.shape)], -1)
        weights = softmax_over(torch.cat([scores, pooled], -1), seen)
        return weights[..., :kv_len] + weights[..., kv_len:] @ spread

    def kept(self, positions: Tensor, upcoming: Tensor) -> Tensor | None:
        if self.summarises:
            return None
        return positions // self.options.block_size >= upcoming // self.options.block_size - self._neighbours

    @property
    def _neighbours(self) -> int:
        """Blocks seen on each side of the own one."""
        return 1 if self.options.integration == "previous" else 0

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.options.block_size * (2 if self.options.integration == "previous" else 1) >= length

    def pairs(self, length: int, causal: bool = False) -> int:
        """With summaries, a query and a summary are one pair."""
        sizes = block_sizes(length, self.options.block_size)
        own = sum(triangle(size) if causal else size * size for size in sizes)
        if self.options.integration == "previous":
            return own + sum(a * b for a, b in itertools.pairwise(sizes)) * (1 if causal else 2)
        if self.summarises:
            return own + sum(size * (block if causal else len(sizes) - 1) for block, size in enumerate(sizes))
        return own


def _summary_parts(blocks: Tensor, length: int, causal: bool) -> Iterator[GatherTile]:
    """The rows of ``blocks (M, b)`` with the summaries, after ``length`` keys, of the other blocks."""
    rows, count = in_rows(blocks, WIDE_ROW).flatten(0, 1), len(blocks)
    per_block = len(rows) // count
    if causal:
        summaries = torch.arange(length, length + count, device=blocks.device)
        yield from prefixes(rows, summaries, [row // per_block for row in range(len(rows))])
        return
    own = torch.arange(len(rows), device=blocks.device)[:, None] // per_block
    others = torch.arange(count - 1, device=blocks.device)
    yield GatherTile(rows[None, None], (length + others + (others >= own))[None, None])


class PooledBlocks(NamedTuple):
    """M blocks' summaries."""

    keys: Tensor
    """``(B, H, M, D)``"""
    values: Tensor
    """``(B, H, M, D)``"""
    real: Tensor
    """Which blocks have a real token, ``(B or 1, M)``."""
    position: Tensor
    """Mean position of each block's real tokens, rounded down, ``(B or 1, M)``: where a score term meets the summary."""


def summarise(k: Tensor, v: Tensor, padding_mask: Tensor | None, size: int, by_attention: bool, scale: float) -> PooledBlocks:
    """Summaries of the blocks of ``size`` tokens of ``k, v (B, H, N, D)``; padding ``(B, N)`` never enters one."""
    length = k.shape[2]
    count = -(-length // size)
    real = torch.ones(1, length, dtype=torch.bool, device=k.device) if padding_mask is None else padding_mask
    real = F.pad(real, (0, count * size - length)).unflatten(1, (count, size))
    k_blocks, v_blocks = (F.pad(x, (0, 0, 0, count * size - length)).unflatten(2, (count, size)) for x in (k, v))
    places = torch.arange(count * size, device=k.device).view(count, size)
    position = (real * places).sum(-1) // real.sum(-1).clamp(min=1)
    keys, values = pool_blocks(k_blocks, v_blocks, real, by_attention, scale)
    return PooledBlocks(keys, values, real.any(-1), position)


def pool_blocks(k: Tensor, v: Tensor, real: Tensor, by_attention: bool, scale: float) -> tuple[Tensor, Tensor]:
    """k̄ and v̄, ``(B, H, M, D)``, of blocks ``k, v (B, H, M, size, D)`` with ``real (B or 1, M, size)``."""
    precise = torch.promote_types(k.dtype, torch.float32)
    weights = (real.to(precise) / real.sum(-1, keepdim=True).clamp(min=1))[:, None].expand(*k.shape[:2], -1, -1)
    if by_attention:
        mean = _average(weights, k.to(precise))
        scores = products(mean[..., None, :], k)[..., 0, :] * scale
        weights = softmax_over(scores, real[:, None])
    return _average(weights, k), _average(weights, v)


def _average(weights: Tensor, blocks: Tensor) -> Tensor:
    """Tokens ``(B, H, M, size, D)`` averaged by ``weights (B, H, M, size)``, in fp32 at least, and rounded once to the tokens' dtype."""
    with torch.autocast(blocks.device.type, enabled=False):
        return (weights[..., None, :] @ blocks.to(weights.dtype))[..., 0, :].to(blocks.dtype)


def at_summaries(score_mod: ScoreMod | None, length: int, position: Tensor) -> ScoreMod | None:
    """``score_mod`` for keys of which those from ``length`` on are summaries at ``position (B or 1, M)``."""
    if score_mod is None:
        return None

    def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        item = b if position.shape[0] > 1 else torch.zeros_like(b)
        place = position[item, (kv_idx - length).clamp(min=0)]
        return score_mod(score, b, h, q_idx, torch.where(kv_idx < length, kv_idx, place))

    return mod
