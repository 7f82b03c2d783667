"""Segmented attention: softmax inside blocks, and over neighbouring blocks or summaries of all others.

Blocks have b tokens, counted from the first real token. By the option ``integration``, a query sees under one softmax

    none       the keys of its block
    previous   the keys of its block and of the block before, and in the bidirectional form of the next block (Qiu et
               al. 2020, BlockBERT, whose heads see either their block or a shifted one; here every head sees both)
    pooled     the keys of its block, and a summary of each other block: one key and one value

The causal form has only keys j <= i and summaries of earlier blocks. One softmax over the tokens of a block and the
summaries of the other blocks is Combiner's form (Ren et al. 2021, section 4.1, Combiner-Fixed).

A summary is the mean key and the mean value of the block's n real tokens. In the N×N matrix of weights, each of these
tokens has 1 / n of the summary's weight.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.batch import without_autocast
from ..engines.call import AttentionCall, GatherTile, MaskMod, rows_of
from ..engines.dense import dense_attention, grid_of, repeat_heads
from ..engines.dispatch import choose
from ..engines.gathered import gathered_attention
from ..engines.score_terms import remapped
from ..positions.trained_distances import Locality
from .common.base import LayerSizes, pad_queries, softmax_over, visible_in_full_attention
from .common.capabilities import About
from .common.layout import QUERIES_PER_WIDE_ROW, block_sizes, cells, full_pairs, in_blocks, in_rows, prefixes
from .common.masked import GatheredMechanism
from .common.options import Options, option
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class SegmentedOptions(Options):
    block_size: int = option(256, "tokens in a block", "tokens", least=1)
    integration: str = option(
        "previous",
        "what a block sees of the others: 'none'; 'previous' (both neighbours if bidirectional); 'pooled': mean key "
        "and value of each",
        choices=("none", "previous", "pooled"),
    )

    def is_mask(self) -> bool:
        return self.integration != "pooled"

    def pools_keys(self) -> bool:
        return self.integration == "pooled"


@register_mechanism("segmented")
class Segmented(GatheredMechanism):
    about = About(
        summary="softmax inside blocks; of other blocks nothing, the neighbours, or pooled summaries",
        paper="Qiu et al. 2020, BlockBERT; summaries: Ren et al. 2021, Combiner, §4.1",
        when="a cheap first try on long documents: blocks, with integration=pooled also a summary of each other block",
        engine="gathered",
        cost="N·b, with summaries N·(b+N/b)",
        sample={"block_size": 24, "integration": "pooled"},
        covering=lambda length, causal: {"block_size": length},
    )
    capabilities = GatheredMechanism.capabilities.but(takes_sinks=False)
    per_head_tensors = ()
    options: SegmentedOptions
    forward_is_mask = True
    definition_is_mask = True

    def __init__(self, sizes: LayerSizes, options: SegmentedOptions) -> None:
        super().__init__(sizes, options)
        self.summarises = not options.is_mask()
        """Whether other blocks are seen as summaries."""
        self.forward_is_mask = self.forward_is_mask and not self.summarises
        self._neighbours = 1 if options.integration == "previous" else 0
        """Number of blocks that a query sees on each side of its block."""

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        """The keys that have a weight. With summaries, these are all keys (all earlier ones when causal)."""
        size, reached = self.options.block_size, self._neighbours

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            blocks_apart = q_idx // size - kv_idx // size
            if self.summarises:
                return blocks_apart == blocks_apart  # True for every pair
            return (blocks_apart <= reached) & (blocks_apart >= -reached)

        return mod

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """Tiles of each block with the keys, or keys and summaries, that it sees.

        Summaries are keys after the ``length`` tokens.
        """
        size = self.options.block_size
        blocks = rows_of(length, size, device)[0, 0]
        if self.options.integration == "none":
            return tuple(cells(blocks, blocks, causal=causal))
        if self.options.integration == "previous":
            before = F.pad(blocks, (0, 0, 1, 0), value=-1)[:-1]
            after = F.pad(blocks, (0, 0, 0, 1), value=-1)[1:]
            keys = [before, blocks] if causal else [before, blocks, after]
            return tuple(cells(blocks, torch.cat(keys, 1), causal=causal))
        return (*cells(blocks, blocks, causal=causal), *_summary_parts(blocks, length, causal))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, Nq, D)``, with the summaries of blocks as further keys and values."""
        if not self.summarises or self.covers(k.shape[2], call.causal):
            return super().forward(q, k, v, call)

        # The summaries are further keys and values, after those of the tokens.
        q_len, kv_len, causal = q.shape[2], k.shape[2], call.causal
        keys, values, real, positions = summarise(k, v, call.key_mask, self.options.block_size)

        def position(b: Tensor, h: Tensor, kv_idx: Tensor) -> Tensor:
            """The position of each key or summary in score terms."""
            rows = b.clamp(max=len(positions) - 1)
            return torch.where(kv_idx < kv_len, kv_idx, positions[rows, (kv_idx - kv_len).clamp(min=0)])

        call = call.replace(causal=False, score_mod=remapped(call.score_mod, position))
        if call.key_mask is not None:
            call = call.with_mask(torch.cat([call.key_mask, real], 1))
        path = choose("pairs", q, k, call)
        k, v = torch.cat([k, keys], 2), torch.cat([v, values], 2)
        if path == "dense-masked":
            rows = torch.arange(kv_len - q_len, kv_len, device=q.device).view(1, 1, -1, 1)
            return dense_attention(q, k, v, call, mask_mod=self._extended_mod(kv_len, causal), q_idx=rows)
        parts = self.plan(kv_len, causal, q.device)
        return gathered_attention(pad_queries(q, kv_len), k, v, parts, call)[:, :, kv_len - q_len :]

    def _extended_mod(self, length: int, causal: bool) -> MaskMod:
        """Mask of the visible keys and of the visible summaries, which follow the keys."""
        size = self.options.block_size

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            query_block, block = q_idx // size, kv_idx - length
            inside = (kv_idx < length) & (kv_idx // size == query_block)
            other_block = (block >= 0) & (block != query_block)
            if causal:
                return (inside & (kv_idx <= q_idx)) | (other_block & (block < query_block))
            return inside | other_block

        return mod

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The weights ``(B, H, Nq, Nk)``, in which a summary's weight is shared by the tokens of its block."""
        if not self.summarises:
            return super().dense_weights(q, k, call)
        heads, kv_len, size = q.shape[1], k.shape[2], self.options.block_size
        k = repeat_heads(k, heads)
        b, h, q_idx, kv_idx = grid_of(q, k)
        query_block = q_idx // size

        # The tokens of each block, (B, H, M, Nk), and their equal shares in its summary.
        block = torch.arange((kv_len + size - 1) // size, device=q.device)
        in_block = (call.real(k)[:, None, None] & (kv_idx // size == block[:, None])).expand(-1, heads, -1, -1)
        shares = softmax_over(torch.zeros_like(in_block, dtype=k.dtype), in_block)

        # Tokens of the own block and summaries of other blocks, under one softmax.
        own_block = (kv_idx // size == query_block) & visible_in_full_attention(q, k, call)
        other_block = (block < query_block) if call.causal else (block != query_block)
        other_block = in_block.any(-1)[:, :, None] & other_block
        scores, pooled = (q @ keys.mT * call.scale_for(q.shape[-1]) for keys in (k, shares @ k))
        if call.score_mod is not None:
            scores = call.score_mod(scores, b, h, q_idx, kv_idx)
            pooled = call.score_mod(pooled, b, h, q_idx, middle_of(in_block)[:, :, None])
        seen = torch.cat([own_block.expand(scores.shape), other_block.expand(pooled.shape)], -1)
        weights = softmax_over(torch.cat([scores, pooled], -1), seen)
        return weights[..., :kv_len] + weights[..., kv_len:] @ shares

    def locality(self, causal: bool) -> Locality | None:
        if self.summarises:
            return None
        size = self.options.block_size
        back = (self._neighbours + 1) * size - 1
        return Locality(back, 0 if causal else back, size)

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.options.block_size * (1 + self._neighbours) >= length

    def pairs(self, length: int, causal: bool = False) -> int:
        """Number of visible pairs. A query and a summary are one pair."""
        sizes = block_sizes(length, self.options.block_size)
        within = sum(full_pairs(size, causal) for size in sizes)
        if self.options.integration == "previous":
            return within + sum(a * b for a, b in itertools.pairwise(sizes)) * (1 if causal else 2)
        if self.summarises:
            return within + sum(size * (block if causal else len(sizes) - 1) for block, size in enumerate(sizes))
        return within


def _summary_parts(blocks: Tensor, length: int, causal: bool) -> Iterator[GatherTile]:
    """Tiles of the tokens in ``blocks (M, b)`` with the summaries of the other blocks. The summary of block m is key
    ``length`` + m."""
    rows = in_rows(blocks, QUERIES_PER_WIDE_ROW).flatten(0, 1)
    count = len(blocks)
    rows_per_block = len(rows) // count
    if causal:
        summaries = torch.arange(length, length + count, device=blocks.device)
        yield from prefixes(rows, summaries, [row // rows_per_block for row in range(len(rows))])
        return
    row_block = torch.arange(len(rows), device=blocks.device)[:, None] // rows_per_block
    # numbers from the own block on are one higher, which leaves the own block out
    other_blocks = torch.arange(count - 1, device=blocks.device)
    yield GatherTile(rows[None, None], (length + other_blocks + (other_blocks >= row_block))[None, None])


def summarise(k: Tensor, v: Tensor, key_mask: Tensor | None, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summaries of ``k, v (B, H, N, D)`` in M blocks of ``size`` tokens, without padding (``key_mask (B, N)`` is
    False).

    Returns:
        The mean keys and the mean values, ``(B, H, M, D)``. Then whether each block has real tokens, ``(B or 1, M)``
        bool. Then the mean position of these tokens, rounded down, which is the summary's position in score terms.
    """
    real = torch.ones(1, k.shape[2], dtype=torch.bool, device=k.device) if key_mask is None else key_mask
    real = in_blocks(real[:, None, :, None], size)[:, 0, ..., 0]
    position = torch.arange(real.shape[1], device=k.device) * size + middle_of(real)
    shares = real.to(torch.promote_types(k.dtype, torch.float32)) / real.sum(-1, keepdim=True).clamp(min=1)
    means = []
    for x in (k, v):
        with without_autocast(x):  # sums in at least fp32
            sums = shares[:, None, :, None] @ in_blocks(x, size).to(shares.dtype)
        means.append(sums[..., 0, :].to(x.dtype))
    return means[0], means[1], real.any(-1), position


def middle_of(real: Tensor) -> Tensor:
    """Mean index ``(…)`` of the real tokens in blocks ``real (…, size)`` bool, rounded down; 0 in empty blocks."""
    return (real * torch.arange(real.shape[-1], device=real.device)).sum(-1) // real.sum(-1).clamp(min=1)
