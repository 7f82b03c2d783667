"""Segment recurrence of Transformer-XL (Dai et al. 2019, section 3.2): queries see their segment and a memory, the M
tokens before the segment.

Segments have S tokens, counted from the first real token. With s(i) = S·⌊i/S⌋ the first position of i's segment, query
i sees key j if

    causal:         s(i) - M <= j <= i
    bidirectional:  s(i) - M <= j < s(i) + S

Gradients stop at the memory's keys and values. With ``bptt``, gradients flow into the memory. The paper stops
gradients one step earlier, at the memory's hidden states, ``h̃ = [SG(h_τ) ∘ h_τ+1]``, which it projects to keys and
values again.

Positions are relative in the paper. Here, rotary positions are relative, too. A ``score_mod`` that depends on the
distance applies to the memory's keys at their true positions.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..engines.batch import differentiated
from ..engines.byte_cache import BYTE_CACHE
from ..engines.call import AttentionCall, GatherTile, MaskMod, rows_of
from ..engines.dense import grid_of, repeat_heads
from ..engines.gathered import gathered_attention
from ..engines.score_terms import ScoreMod
from ..positions.trained_distances import Locality
from .common.base import LayerSizes, pad_queries, scaled_scores, softmax_over
from .common.capabilities import About
from .common.layout import block_sizes, cells, full_pairs
from .common.masked import GatheredMechanism
from .common.options import Options, option
from .common.registry import register_mechanism
from .common.shared_options import AttendedKeys, with_dense_terms, with_relative


@dataclasses.dataclass(frozen=True)
class TransformerXLOptions(Options):
    segment_length: int = option(512, "S, tokens in a segment", "tokens", least=1)
    memory_length: int = option(512, "M, how many tokens before its segment a query sees", "tokens", least=0)
    bptt: bool = option(False, "whether gradients flow from a segment into its memory; the paper stops them")

    @property
    def stops_gradients(self) -> bool:
        """Whether there is a memory into which gradients must not flow."""
        return not self.bptt and self.memory_length > 0

    def is_mask(self) -> bool:
        return not self.stops_gradients


@register_mechanism("transformer_xl")
class TransformerXL(GatheredMechanism):
    about = About(
        summary="the query's segment and a memory of the tokens before it, into which gradients may be stopped",
        paper="Dai et al. 2019, Transformer-XL, §3.2",
        when="a decoder that reads a text by segments and sees the segment before, as Transformer-XL and XLNet do",
        engine="gathered",
        cost="N·(S+M)",
        sample={"segment_length": 24, "memory_length": 40, "bptt": True},
        covering=lambda length, causal: (
            {"segment_length": 64, "memory_length": length} if causal else {"segment_length": length}
        ),
    )
    capabilities = GatheredMechanism.capabilities.but(takes_sinks=False, images="segments")
    options: TransformerXLOptions
    forward_is_mask = True

    # `forward` adds the relative positions: terms that read keys (u·k) have gradients for the segment's keys only.
    _relative_by_hook = False

    def __init__(self, sizes: LayerSizes, options: TransformerXLOptions) -> None:
        super().__init__(sizes, options)
        self.chunks = (options.segment_length, options.memory_length)

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        size, memory = self.options.segment_length, self.options.memory_length

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            first = q_idx // size * size
            return (kv_idx >= first - memory) & (kv_idx < first + size)

        return mod

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        blocks, memory = self._rows(length, device)
        return tuple(cells(blocks, torch.cat([memory, blocks], 1), causal=causal))

    def _rows(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions of the segments ``(R, S)`` and of their memories ``(R, M)``; -1 for none."""
        blocks = rows_of(length, self.options.segment_length, device)[0, 0]
        memory_length = min(self.options.memory_length, (len(blocks) - 1) * self.options.segment_length)
        memory = blocks[:, :1] + torch.arange(-memory_length, 0, device=device)
        return blocks, memory.clamp(min=-1)

    def attended_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> AttendedKeys:
        return self.keys_by_mask(k, call)  # stopped gradients do not change which keys are attended

    def labels_documents(self, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
        return super().labels_documents(k, v, call) and not self._stops_gradients(k, v)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, Nq, D)``.

        If gradients must stop at the memory, its keys and values are a detached copy.
        """
        if not self._stops_gradients(k, v):
            return super().forward(q, k, v, with_relative(self, q, k, call))
        # Keys and values of the memory are a second, detached copy after those of the segments. Each query sees a
        # token at most once: in its segment, or in the memory.
        q_len, length, causal = q.shape[2], k.shape[2], call.causal
        old_k, old_v = k.detach(), v.detach()
        joint_call = call.replace(score_mod=self._joint_score_mod(q, k, old_k, call), causal=False)
        q = pad_queries(q, length)
        k, v = torch.cat([k, old_k], 2), torch.cat([v, old_v], 2)
        if call.key_mask is not None:
            joint_call = joint_call.with_mask(torch.cat([call.key_mask, call.key_mask], 1))
        name = (TransformerXL, "parts with stopped gradients", self.options, length, causal, q.device)
        parts = BYTE_CACHE.get(name, partial(self._joint_parts, length, causal, q.device))
        out = gathered_attention(q, k, v, parts, joint_call)
        return out[:, :, length - q_len :]

    def _stops_gradients(self, k: Tensor, v: Tensor) -> bool:
        """Whether this pass has a memory into which gradients must not flow."""
        stops = self.options.stops_gradients and differentiated(k, v)
        return stops and k.shape[2] > self.options.segment_length

    def _joint_score_mod(self, q: Tensor, k: Tensor, old_k: Tensor, call: AttentionCall) -> ScoreMod | None:
        """The score term, relative positions included, for the segments' keys ``k`` and the memory's keys after
        them."""
        length = k.shape[2]
        segment_mod = memory_mod = with_relative(self, q, k, call).written_out().score_mod
        if self.relative is not None and self.relative.reads_keys:
            memory_mod = with_relative(self, q, old_k, call).written_out().score_mod
        if segment_mod is None or memory_mod is None:
            return None

        def joint(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            position = kv_idx % length
            in_segment = segment_mod(score, b, h, q_idx, position)
            if segment_mod is memory_mod:
                return in_segment
            return torch.where(kv_idx < length, in_segment, memory_mod(score, b, h, q_idx, position))

        return joint

    def _joint_parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """Tiles of segments with their own keys, and of segments with the memory's keys. The memory's key of position
        p has index ``length`` + p."""
        blocks, memory = self._rows(length, device)
        old_keys = torch.where(memory < 0, -1, memory + length)
        return (*cells(blocks, blocks, causal=causal), *cells(blocks, old_keys, causal=False))

    def defined(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The definition. Without ``bptt``, the memory's keys and values are constants."""
        if not self.options.stops_gradients:
            return super().defined(q, k, v, call)
        heads, size = q.shape[1], self.options.segment_length
        old_k, old_v = k.detach(), v.detach()
        in_segment, in_memory = (scaled_scores(*with_dense_terms(self, q, keys, call)) for keys in (k, old_k))
        _, _, q_idx, kv_idx = grid_of(q, k)
        own_segment = q_idx // size == kv_idx // size
        weights = softmax_over(torch.where(own_segment, in_segment, in_memory), self.visible(q, k, call))
        from_segment = (weights * own_segment) @ repeat_heads(v, heads)
        return from_segment + (weights * ~own_segment) @ repeat_heads(old_v, heads)

    def locality(self, causal: bool) -> Locality:
        size = self.options.segment_length
        return Locality(size - 1 + self.options.memory_length, 0 if causal else size - 1, size)

    def retained(self, positions: Tensor, upcoming: Tensor) -> Tensor:
        size = self.options.segment_length
        return positions >= upcoming // size * size - self.options.memory_length

    def covers(self, length: int, causal: bool = False) -> bool:
        size = self.options.segment_length
        last_segment = (length - 1) // size * size  # its first token
        return length <= size or (causal and last_segment <= self.options.memory_length)

    def pairs(self, length: int, causal: bool = False) -> int:
        total = 0
        for block, size in enumerate(block_sizes(length, self.options.segment_length)):
            remembered = min(self.options.memory_length, block * self.options.segment_length)
            total += full_pairs(size, causal) + size * remembered
        return total
