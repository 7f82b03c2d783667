"""Block top-k attention (Lu et al. 2025, MoBA: Mixture of Block Attention, section 2.2, equations 2-6).

Keys are cut into blocks of b tokens, counted from the first real token. Query i of block c scores the other blocks by
their mean key,

    g_im = q_i · mean_{j in block m} k_j

and attends, under one softmax, to its block c and to the num_blocks - 1 others with the highest g. In the causal form,
which is MoBA's, the query chooses among the complete blocks before c, and sees block c up to its own position. Ties go
to the earlier block. Choices are made in float64, without gradients.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.call import AttentionCall, selection_mask
from ..engines.dense import dense_attention, repeat_heads
from ..engines.dispatch import choose
from ..engines.gathered import block_selected_attention
from ..engines.topk import exact_dtype, ranking, topk, topk_blocks
from .common.base import Mechanism, pad_queries, scaled_scores, softmax_over, visible_to_all
from .common.capabilities import About
from .common.layout import full_pairs
from .common.options import Options, option
from .common.registry import register_mechanism
from .common.shared_options import KeysOrWeights


@dataclasses.dataclass(frozen=True)
class BlockTopKOptions(Options):
    block_size: int = option(128, "tokens in a block", "tokens", least=1)
    num_blocks: int = option(4, "k, blocks that each query sees, its own included", "blocks", least=1)


@register_mechanism("block_top_k")
class BlockTopK(Mechanism):
    about = About(
        summary="each query attends to its block and to the k-1 blocks whose mean key scores highest",
        paper="Lu et al. 2025, MoBA, §2.2",
        when="a decoder, without further training, that needs evidence from anywhere; each query reads a few blocks "
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
        q_len, kv_len = q.shape[2], k.shape[2]
        path = choose("pairs", q, k, call, covered=self.covers(kv_len, call.causal))
        if path == "dense":
            return dense_attention(q, k, v, call)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        if path == "dense-masked":
            with torch.no_grad():
                seen = self.visible(q, k, call)
            return dense_attention(q, k, v, call.replace(causal=False, batch=None), mask_mod=lambda *_: seen)
        return self.sparse_path(pad_queries(q, kv_len), k, v, call, kv_len - q_len)[:, :, kv_len - q_len :]

    def sparse_path(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, first: int) -> Tensor:
        """Attention of whole sequences without comparing all pairs. Queries before ``first`` are padding."""
        size = self.options.block_size
        with torch.no_grad():
            means, filled = block_means(k, call.key_mask, size)
            count = min(self.options.num_blocks, means.shape[2]) - 1
            chosen = topk_blocks(q, means, filled, count, size, call.causal)
            if first:
                chosen = chosen.masked_fill(torch.arange(k.shape[2], device=q.device)[:, None] < first, -1)
        return block_selected_attention(q, k, v, chosen, size, call)

    def attended_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> KeysOrWeights:
        size = self.options.block_size
        means, filled = block_means(repeat_heads(k, q.shape[1]), call.key_mask, size)
        blocks = torch.arange(means.shape[2], device=q.device)
        block = torch.arange(k.shape[2], device=q.device) // size

        def selected(rows: Tensor, scores: Tensor) -> Tensor:
            own_block = block[rows][:, None]
            gates = q[:, :, rows].to(means.dtype) @ means.mT
            allowed = ((blocks < own_block) if call.causal else (blocks != own_block)) & filled[:, None]
            chosen = topk(gates.masked_fill(~allowed[:, None], float("-inf")), self.options.num_blocks - 1)
            return selection_mask(chosen, own_block, len(blocks))[..., block]

        return selected

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return softmax_over(
            scaled_scores(q, k, call),
            self.visible(q.detach(), repeat_heads(k.detach(), q.shape[1]), call),
            call.sink_scores,
        )

    def visible(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """Mask ``(B, H, Nq, Nk)`` of the keys that each query sees, by the definition: every query scores every
        block."""
        q_len, kv_len, size = q.shape[2], k.shape[2], self.options.block_size
        block = torch.arange(kv_len, device=q.device) // size
        # not -(-kv_len // size), because ONNX rounds quotients of negative numbers towards zero
        total = (kv_len + size - 1) // size
        members = (block == torch.arange(total, device=q.device)[:, None]) & call.real(k)[:, None]  # (B, n, Nk)
        shares = members.to(exact_dtype(q.device))
        shares = (shares / shares.sum(-1, keepdim=True).clamp(min=1))[:, None]
        own_block = block[kv_len - q_len :, None]
        gates = q.to(shares.dtype) @ (shares @ k.to(shares.dtype)).mT
        blocks = torch.arange(total, device=q.device)
        allowed = ((blocks < own_block) if call.causal else (blocks != own_block)) & members.any(-1)[:, None]
        order = ranking(gates.masked_fill(~allowed[:, None], float("-inf")))
        chosen = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order[..., : self.options.num_blocks - 1], True)
        chosen = (chosen & allowed[:, None]) | (blocks == own_block)
        return chosen[..., block] & visible_to_all(q, k, call)


def block_means(x: Tensor, real: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """Block means ``(B, H, n, D)`` float64 over the real tokens of ``x (B, H, N, D)``, and a mask ``(B, n)`` of blocks
    with real tokens."""
    if real is None:
        real = torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device)
    else:
        x = x.masked_fill(~real[:, None, :, None], 0)
    missing = -x.shape[2] % size
    x = F.pad(x, (0, 0, 0, missing)) if missing else x
    sums = x.unflatten(2, (-1, size)).sum(3, dtype=exact_dtype(x.device))
    count = F.pad(real, (0, missing)).unflatten(1, (-1, size)).sum(-1)
    return sums / count.clamp(min=1)[:, None, :, None], count > 0
