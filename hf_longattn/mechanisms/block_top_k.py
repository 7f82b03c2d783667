"""Block top-k attention (Lu et al. 2025, MoBA: Mixture of Block Attention, section 2.2, equations 2-6).

Keys are cut into blocks of b tokens, counted from the first real token. Query i of block c scores the other blocks by
their mean key,

    g_im = q_i · mean_{j in block m} k_j

and attends, under one softmax, to its block c and to the num_blocks - 1 other blocks with the highest g. MoBA has the
causal form only. In that form, the query chooses among the complete blocks before c, and sees block c up to its own
position. Ties go to the earlier block. Choices are made in float64, without gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ..engines.call import AttentionCall
from ..engines.dense import dense_attention, repeat_heads
from ..engines.dispatch import choose
from ..engines.gathered import block_selected_attention
from ..engines.topk import exact_dtype, ranking, topk_blocks
from .common.base import Mechanism, pad_queries, scaled_scores, softmax_over, visible_in_full_attention
from .common.capabilities import About
from .common.layout import full_pairs, in_blocks
from .common.options import Options, option
from .common.registry import register_mechanism
from .common.shared_options import AttendedKeys


@dataclasses.dataclass(frozen=True)
class BlockTopKOptions(Options):
    block_size: int = option(128, "tokens in a block", "tokens", least=1)
    num_blocks: int = option(4, "k, blocks that each query sees, its own included", "blocks", least=1)


@register_mechanism("block_top_k")
class BlockTopK(Mechanism):
    about = About(
        summary="each query attends to its block and to the k-1 blocks whose mean key scores highest",
        paper="Lu et al. 2025, MoBA, §2.2",
        when="a decoder that needs evidence from anywhere, without further training; each query reads a few blocks "
        "of a cache of all tokens",
        engine="block_selected",
        cost="N·k·b + N·N/b",
        sample={"block_size": 32, "num_blocks": 3},
        covering=lambda length, causal: {"block_size": 16, "num_blocks": -(-length // 16)},
    )
    capabilities = Mechanism.capabilities.but(takes_sinks=True)
    per_head_tensors = ()
    options: BlockTopKOptions

    def covers(self, length: int, causal: bool = False) -> bool:
        return length <= self.options.num_blocks * self.options.block_size

    def pairs(self, length: int, causal: bool = False) -> int:
        """Number of pairs with the keys of chosen blocks, plus one pair for each block that a query scores.

        Bounded by full attention.
        """
        dense = full_pairs(length, causal)
        if self.covers(length, causal):
            return dense
        size, count = self.options.block_size, self.options.num_blocks
        if not causal:
            return min(dense, length * count * size + length * -(-length // size))
        position = torch.arange(length)
        own_block = position // size
        in_own_block = position % size + 1
        in_chosen_blocks = own_block.clamp(max=count - 1) * size
        return min(dense, int((in_own_block + in_chosen_blocks + own_block).sum()))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, Nq, D)``: dense for short texts, else over each query's own and chosen blocks."""
        q_len, kv_len = q.shape[2], k.shape[2]
        path = choose("pairs", q, k, call, covered=self.covers(kv_len, call.causal))
        if path == "dense":
            return dense_attention(q, k, v, call)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        if path == "dense-masked":
            seen = self.visible(q, k, call)
            return dense_attention(q, k, v, call.replace(causal=False, batch=None), mask_mod=lambda *_: seen)
        first, size = kv_len - q_len, self.options.block_size
        q = pad_queries(q, kv_len)  # block_selected_attention takes whole sequences
        with torch.no_grad():
            means, filled = block_means(k, call.key_mask, size)
            count = min(self.options.num_blocks, means.shape[2]) - 1
            chosen = topk_blocks(q, means, filled, count, size, call.causal)
            if first:  # padded queries choose no block
                chosen = chosen.masked_fill(torch.arange(kv_len, device=q.device)[:, None] < first, -1)
        return block_selected_attention(q, k, v, chosen, size, call)[:, :, first:]

    def attended_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> AttendedKeys:
        selected = self.selected(q, repeat_heads(k, q.shape[1]), call)
        return lambda rows, scores: selected(rows)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        visible = self.visible(q, repeat_heads(k, q.shape[1]), call)
        return softmax_over(scaled_scores(q, k, call), visible, call.sink_scores)

    @torch.no_grad()
    def visible(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """Mask ``(B, H, Nq, Nk)`` of the keys that each query sees."""
        rows = torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device)
        return self.selected(q, k, call)(rows) & visible_in_full_attention(q, k, call)

    def selected(self, q: Tensor, k: Tensor, call: AttentionCall) -> Callable[[Tensor], Tensor]:
        """The definition of the choice: every query scores every block.

        Returns:
            A function ``rows (n,)`` -> ``(B, H, n, Nk)`` bool: the keys of the chosen blocks of the queries at
            positions ``rows``.
        """
        first, size = k.shape[2] - q.shape[2], self.options.block_size
        means, filled = block_means(k, call.key_mask, size)
        blocks = torch.arange(means.shape[2], device=q.device)
        block_of_key = torch.arange(k.shape[2], device=q.device) // size

        def keys_of(rows: Tensor) -> Tensor:
            """Mask ``(B, H, n, Nk)`` of the keys in the blocks that the queries at ``rows (n,)`` see."""
            own_block = block_of_key[rows][:, None]
            gates = q[:, :, rows - first].to(means.dtype) @ means.mT  # g_im, (B, H, n, blocks)
            others = (blocks < own_block) if call.causal else (blocks != own_block)
            allowed = (others & filled[:, None])[:, None]
            order = ranking(gates.masked_fill(~allowed, float("-inf")))
            best = torch.zeros_like(order, dtype=torch.bool)
            best = best.scatter(-1, order[..., : self.options.num_blocks - 1], True)
            seen_blocks = (best & allowed) | (blocks == own_block)
            return seen_blocks[..., block_of_key]

        return keys_of


def block_means(x: Tensor, real: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """Means of the real tokens of each block, ``(B, H, n, D)``, and a mask ``(B, n)`` bool of blocks with real tokens.

    The means of blocks without real tokens are 0. Means are in float64 if the device has it.

    Args:
        x: ``(B, H, N, D)``.
        real: ``(B, N)`` bool, False for padding; ``None`` if all tokens are real.
        size: tokens in a block.
    """
    if real is None:
        real = torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device)
    else:
        x = x.masked_fill(~real[:, None, :, None], 0)
    sums = in_blocks(x, size).sum(3, dtype=exact_dtype(x.device))
    count = in_blocks(real[:, None, :, None], size).sum(3)
    return sums / count.clamp(min=1), (count > 0)[:, 0, :, 0]
