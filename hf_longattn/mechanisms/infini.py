"""Infini-attention (Munkhdalai et al. 2024, equations 4-10): softmax within a segment, and a linear memory of the segments before it.

With segments of S tokens from the first real token on and σ = elu + 1, segment s of each head computes

    A_dot = softmax(Q Kᵀ / √D, causal) V                                            local attention within the segment
    A_mem = σ(Q) M_{s-1} / (σ(Q) z_{s-1})                                           retrieval (equation 4)
    M_s   = M_{s-1} + σ(K)ᵀ V          z_s = z_{s-1} + Σ_t σ(K_t)                   update (5)
    M_s   = M_{s-1} + σ(K)ᵀ (V - σ(K) M_{s-1} / (σ(K) z_{s-1}))                     update by the delta rule (6), with ``delta_rule``
    A     = g · A_mem + (1 - g) · A_dot,   g = sigmoid(β)                           gate, one β per head (7)

While the memory is empty (in the first segment), g is 0, so a text of one segment has plain softmax attention. The memory in the paper
uses queries and keys without positions. Here, in a rotary model, the mechanism receives them rotated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.common.batch import in_graph
from ..engines.common.call import AttentionCall, State
from ..engines.common.dense import at_least_fp32, dense_attention, index_grid, masked_softmax, repeat_heads, same_dtype
from ..options import Options, option
from .common.base import Mechanism
from .common.feature_map import elu_plus_one
from .common.layout import block_sizes, full_pairs
from .common.registry import register_mechanism
from .common.scores import drop_keys, normalised, pad_queries, visible_to_all
from .common.segment_state import append_tokens, empty_segment, last_segment

INITIAL_GATE = -2.0
"""Initial β: an untrained memory has a weight of about 1/8."""


@dataclasses.dataclass(frozen=True)
class InfiniOptions(Options):
    segment_length: int = option(512, "S, tokens in a segment, which attend to each other by softmax", "tokens", least=1)
    delta_rule: bool = option(False, "write to the memory only what cannot be retrieved from it yet (equation 6)")


@register_mechanism("infini")
class Infini(Mechanism):
    """Causal softmax within a segment, and a linear memory of all earlier segments."""

    summary = "softmax within a segment, gated with a linear memory of all segments before it"
    paper = "Munkhdalai et al. 2024, Infini-attention, eq. 4-10"
    when = "a decoder that you train, which reads a text segment by segment and has a memory of constant size"
    engine = "recurrent"
    cost = "N·(S+D)"
    causal = True
    per_head_tensors = ("gate",)
    traits = Mechanism.traits.but(remembers=True, trains=True, takes_score_mod=False, stateful=True, bitwise_causal=False)
    sample: ClassVar[dict[str, Any]] = {"segment_length": 40}
    covering_options: ClassVar[Mapping[str, int]] = {"segment_length": 1}
    options: InfiniOptions

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: InfiniOptions) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        self.gate = nn.Parameter(torch.empty(num_heads))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        super().reset_parameters(generator)
        nn.init.constant_(self.gate, INITIAL_GATE)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        q, k, v = same_dtype(q, k, drop_keys(v, call.dropout))
        return self._in_segments(q, k, v, call)[0]

    def _in_segments(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The output, and the memory ``(B, H_kv, s, D, D)`` and norm ``(B, H_kv, s, D)`` before each of s segments; ``None`` if s = 1."""
        q_len, length, size = q.shape[2], k.shape[2], self.options.segment_length
        call = call.replace(causal=True, dropout=0.0)
        if length <= size:
            out = dense_attention(q, k, v, call)
            # Distributed training needs every parameter, the gate included, to take part in every step.
            return out + (self.gate.sum() * 0).to(out.dtype) if torch.is_grad_enabled() else out, None, None
        q = pad_queries(q, length)
        count = -(-length // size)
        rest = count * size - length
        q, k, v = (F.pad(x, (0, 0, 0, rest)).unflatten(2, (count, size)) for x in (q, k, v))
        real = None if call.key_mask is None else F.pad(call.key_mask, (0, rest)).unflatten(1, (count, size))
        in_segments = call.with_mask(None if real is None else real.flatten(0, 1))
        of_segments = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
        local = dense_attention(of_segments[0], of_segments[1], of_segments[2], in_segments)
        local = local.unflatten(0, (-1, count)).transpose(1, 2)
        memory, norm = self._memories(k, v, real)
        out = self._mixed(q, local, memory, norm).flatten(2, 3)[:, :, :length]
        return out[:, :, length - q_len :], memory, norm

    def _memories(self, k: Tensor, v: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Memory and norm before each segment of ``k, v (B, H_kv, s, S, D)``. ``real (B, s, S)`` is False for padding."""
        with torch.autocast(k.device.type, enabled=False):
            keys, values = elu_plus_one(at_least_fp32(k)), at_least_fp32(v)
            if real is not None:
                keys = keys * real[:, None, :, :, None]
            norm = F.pad(keys.sum(3).cumsum(2), (0, 0, 1, -1))
            if not self.options.delta_rule:
                return F.pad((keys.transpose(-1, -2) @ values).cumsum(2), (0, 0, 0, 0, 1, -1)), norm
            memories = [torch.zeros_like(keys[:, :, 0].transpose(-1, -2) @ values[:, :, 0])]
            for segment in range(k.shape[2] - 1):
                segment_keys, segment_values = keys[:, :, segment], values[:, :, segment]
                memories.append(memories[-1] + self._written(segment_keys, segment_values, memories[-1], norm[:, :, segment]))
            return torch.stack(memories, 2), norm

    def _written(self, keys: Tensor, values: Tensor, memory: Tensor, norm: Tensor) -> Tensor:
        """The update ``(B, H_kv, D, D)`` of a memory by a segment's features ``keys (B, H_kv, S, D)``."""
        if self.options.delta_rule:
            values = values - retrieved(keys, memory, norm)
        return keys.transpose(-1, -2) @ values

    def _mixed(self, q: Tensor, local: Tensor, memory: Tensor, norm: Tensor) -> Tensor:
        """The gated mean of the retrieval for ``q (B, H, …, S, D)`` and ``local`` attention. An empty memory has weight 0."""
        with torch.autocast(q.device.type, enabled=False):
            memory, norm = repeat_heads(memory, q.shape[1]), repeat_heads(norm, q.shape[1])
            retrieval = retrieved(elu_plus_one(at_least_fp32(q)), memory, norm)
            gate = self.gate.to(retrieval.dtype).sigmoid().view(1, -1, *[1] * (q.dim() - 2))
            gate = gate * (norm.sum(-1) > 0)[..., None, None]
            return (gate * retrieval + (1 - gate) * local).to(local.dtype)

    def advance(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall) -> tuple[Tensor, State]:
        """The state has each sequence's current segment (:mod:`hf_longattn.mechanisms.common.segment_state`), and the earlier segments'
        ``memory (B, H_kv, D, D)`` and ``norm (B, H_kv, D)``. Dropout drops a key for all query heads that share it."""
        q, k, v = same_dtype(q, k, drop_keys(v, call.dropout))
        size = self.options.segment_length
        if state is None and k.shape[2] > 1:
            out, memories, norms = self._in_segments(q, k, v, call)
            local, segment = last_segment(k, v, call.real(k), size)
            if memories is None or norms is None:
                return out, {**local, **self._empty(k, v)}
            rows = torch.arange(len(segment), device=segment.device)
            return out, {**local, "memory": memories[rows, :, segment], "norm": norms[rows, :, segment]}
        current, outs = {**empty_segment(k, v, size), **self._empty(k, v)} if state is None else state, []
        for first in range(0, k.shape[2], size):
            new = slice(first, first + size)
            piece_call = call.with_mask(None if call.key_mask is None else call.key_mask[:, new])
            out, current = self._step(q[:, :, new], k[:, :, new], v[:, :, new], current, piece_call)
            outs.append(out)
        return torch.cat(outs, 2), current

    def _empty(self, k: Tensor, v: Tensor) -> State:
        precise = torch.promote_types(k.dtype, torch.float32)
        shape = (k.shape[0], k.shape[1], k.shape[3])
        return {"memory": k.new_zeros(*shape, v.shape[3], dtype=precise), "norm": k.new_zeros(shape, dtype=precise)}

    def _step(self, q: Tensor, k: Tensor, v: Tensor, state: State, call: AttentionCall) -> tuple[Tensor, State]:
        """:meth:`advance` by at most one segment of tokens."""
        size = self.options.segment_length
        segments = append_tokens(state, k, v, call.real(k))
        local = segments.attend(q, call.replace(dropout=0.0))
        memory, norm = state["memory"], state["norm"]
        out = self._mixed(q, local, memory, norm)
        if in_graph() or bool(segments.crossed.any()):
            with torch.autocast(k.device.type, enabled=False):
                keys = elu_plus_one(at_least_fp32(segments.keys[:, :, :size])) * segments.real[:, None, :size, None]
                later = memory + self._written(keys, segments.values[:, :, :size].to(memory.dtype), memory, norm)
                later_norm = norm + keys.sum(2)
            beyond = (segments.positions >= size)[:, None, :, None]
            out = torch.where(beyond, self._mixed(q, local, later, later_norm), out)
            memory = torch.where(segments.crossed[:, None, None, None], later, memory)
            norm = torch.where(segments.crossed[:, None, None], later_norm, norm)
        return out, {**segments.state(), "memory": memory, "norm": norm}

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """A query's weights are g · (linear weights of earlier segments) + (1 - g) · (softmax weights of its segment). With the delta rule,
        the linear weights W become W (I + R)⁻¹: the memory stores U = (I + R)⁻¹ V. R has the linear weights of keys used as queries."""
        (_, heads, q_len, head_dim), length, size = q.shape, k.shape[2], self.options.segment_length
        k = repeat_heads(k, heads)
        _, _, q_idx, kv_idx = index_grid(1, 1, q_len, length, q.device)
        token = visible_to_all(q, k, call.replace(causal=True))
        query_segment, segment = q_idx // size, kv_idx // size
        real = True if call.key_mask is None else call.key_mask[:, None, None, :]
        inside = token & (segment == query_segment)
        scores = q @ k.transpose(-1, -2) * call.scale_for(head_dim)
        local = masked_softmax(scores, inside.expand_as(scores))

        def linear(features: Tensor, of: Tensor) -> Tensor:
            return normalised(features @ (F.elu(k) + 1).transpose(-1, -2) * (real & (segment < of)))

        memory = linear(F.elu(q) + 1, query_segment)
        gate = self.gate.to(q.dtype).sigmoid().view(1, -1, 1, 1) * (memory.sum(-1, keepdim=True) > 0)
        if self.options.delta_rule:
            given_back = linear(F.elu(k) + 1, segment.transpose(-1, -2))
            eye = torch.eye(length, dtype=q.dtype, device=q.device)
            memory = torch.linalg.solve_triangular(eye + given_back, memory, upper=False, left=False)
        return gate * memory + (1 - gate) * local

    def covers(self, length: int, causal: bool = False) -> bool:
        return length <= self.options.segment_length

    def pairs(self, length: int, causal: bool = False) -> int:
        """Pairs within segments, plus D per token for the memory of D·D numbers."""
        local = sum(full_pairs(size, True) for size in block_sizes(length, self.options.segment_length))
        return local + (length * self.head_dim if length > self.options.segment_length else 0)


def retrieved(features: Tensor, memory: Tensor, norm: Tensor) -> Tensor:
    """Equation 4: the retrieval by ``features (…, S, D)`` from ``memory (…, D, D)``. An empty memory gives zeros."""
    total = (features @ norm[..., None]).clamp(min=torch.finfo(features.dtype).tiny)
    return (features @ memory) / total
