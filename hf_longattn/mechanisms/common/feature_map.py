"""Base of linear mechanisms: features of queries and keys, for the linear engine (Katharopoulos et al. 2020, equations
4 to 12).

    o_i = Σ_j κ(q_i, k_j) v_j / Σ_j κ(q_i, k_j)        κ(q, k) = φ_q(q) · φ_k(k)

A mechanism defines φ for the fast path. For the definition it gives κ, written without φ. On a CPU, features are
computed for a few hundred tokens at a time. They stay in the CPU cache and, unless gradients are needed, never exist
for the whole text.

Exponential features are stored as logarithms, so that no score overflows (:attr:`LinearMechanism.logarithms`). Feature
m of query i is exp(b_im), and feature m of key j is exp(a_jm). A piece of keys is exponentiated relative to an anchor
A_m. The anchor is the largest a_jm of the earlier keys or, in the first piece, a_jm of the first real key. Up to a
factor per query, the weights Σ_m exp(b_im + a_jm) are

    Σ_m exp(b_im + A_m - c_i) exp(a_jm - A_m)          c_i = max_m (b_im + A_m)

No later key changes a query's output, except by rounding on accelerators and in graphs. There, the anchor may include
keys of the piece itself.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...engines import accelerator
from ...engines.batch import in_graph, without_autocast
from ...engines.call import AttentionCall, State, precise_dtype
from ...engines.dense import at_least_fp32, repeat_heads
from ...engines.linear_attention import (
    CHUNK,
    absorb,
    added,
    empty_state,
    exp_of,
    linear_attention,
    masked,
    read,
    relative_queries,
)
from ...engines.topk import exact_dtype
from .base import LayerSizes, Mechanism, drop_keys, normalised, softmax_over, visible_in_full_attention
from .capabilities import Stateful
from .layout import full_pairs
from .options import Options


class HeadwiseLinear(nn.Module):
    """A linear map per head with ``weight (H, D, F)``. It maps ``(B, H or H_kv, n, D)`` to ``(B, H, n, F)``, in the
    input's dtype."""

    def __init__(self, sizes: LayerSizes, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sizes.num_heads, sizes.head_dim, features))

    def forward(self, x: Tensor) -> Tensor:
        return repeat_heads(x, self.weight.shape[0]) @ self.weight.to(x.dtype)


FEATURES_PER_PIECE = 1 << 18
"""Feature elements computed at a time on a CPU, per thread. With fewer elements, threads wait for one another. More
elements do not fit into the CPU cache."""
NO_KEYS = -1e30
"""Log scale of a feature that has had no keys so far. Finite, so that differences are not NaN."""
MAX_LOG_RISE = 60.0
"""Maximum of a key's log feature minus the anchor A. exp(60) and its products fit in fp32."""


class LinearMechanism(Mechanism, Stateful):
    """A mechanism whose weights are products of features. With :attr:`logarithms`, methods return log features."""

    capabilities = Mechanism.capabilities.but(takes_score_mod=False, position_dependent=False)
    estimates_exp: ClassVar[bool] = False
    """Whether κ estimates exp(scale · q·k) itself, so that it can be added to softmax terms."""
    sums_beside_softmax: ClassVar[bool] = True
    """Whether sums of features can be added to softmax terms."""
    logarithms: bool = False
    """Whether :meth:`queries`, :meth:`keys` and :meth:`kernel` return logarithms."""
    features_per_head: int
    """F, the number of features per head, by default D. Sizes the state and the pieces."""

    def __init__(self, sizes: LayerSizes, options: Options) -> None:
        super().__init__(sizes, options)
        self.features_per_head = sizes.head_dim

    @abstractmethod
    def queries(self, q: Tensor, call: AttentionCall) -> Tensor:
        """φ_q of ``q (B, H, n, D)``: ``(B, H, n, F)``. A factor per query cancels in the normalisation."""

    @abstractmethod
    def keys(self, k: Tensor, call: AttentionCall) -> Tensor:
        """φ_k of ``k (B, H_kv, n, D)``: ``(B, H_kv or H, n, F)``."""

    @abstractmethod
    def kernel(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The definition: κ ``(B, H, Nq, Nk)``, up to a factor per query.

        ``q (B, H, Nq, D)`` has the last Nq positions of ``k (B, H, Nk, D)``.
        """

    def scaled(self, x: Tensor, call: AttentionCall) -> Tensor:
        """Queries or keys times (scale · √D)^½, so that their products are scaled by ``scale`` instead of D^-½."""
        scale = call.scale_for(self.head_dim)
        return x if scale == self.head_dim**-0.5 else x * (scale * self.head_dim**0.5) ** 0.5

    def pairs(self, length: int, causal: bool = False) -> int:
        """Updating and reading a state of F·D numbers counts as F pairs per token. The causal form adds the pairs
        within each chunk."""
        chunk = min(length, CHUNK) if causal else 0
        pairs = length * self.features_per_head + length * (chunk + 1) // 2
        return min(full_pairs(length, causal), pairs)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        kernel = self.kernel(q, repeat_heads(k, q.shape[1]), call)
        visible = visible_in_full_attention(q, k, call)
        return softmax_over(kernel, visible) if self.logarithms else normalised(kernel.masked_fill(~visible, 0.0))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        with without_autocast(q):
            return self.run(q, k, v, None, call)[0]

    def advance(
        self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall
    ) -> tuple[Tensor, State]:
        """The state holds the sums ``kv (B, heads, F, D)`` and ``z (B, heads, F)``. With logarithms it also has
        ``log (B, heads, F)``, the largest logarithm of each feature, to which the sums are relative."""
        with without_autocast(q):
            return self.run(q, k, v, state, call if call.causal else call.replace(causal=True))

    def run(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall) -> tuple[Tensor, State]:
        """The output of ``q`` over the keys of ``state`` and ``k``, and the state after them.

        With logarithms, a causal piece ends before a key that exceeds the anchor A by more than :data:`MAX_LOG_RISE`.
        A graph cannot cut pieces by values. It computes in float64, where exp() covers differences of about 700, or in
        float32 (about 80) on devices without float64.
        """
        v = drop_keys(v, call.dropout)
        if not (self.logarithms and call.causal and q.shape[2] > 1):
            return self.in_pieces(q, k, v, state, call)
        if in_graph() or (q.is_cuda and torch.cuda.is_current_stream_capturing()):
            exact = exact_dtype(q.device)
            if state is not None:
                state = {name: x.to(exact) for name, x in state.items()}
            out, state = self.in_pieces(q.to(exact), k.to(exact), v.to(exact), state, call)
            dtype = precise_dtype(q)
            return out.to(q.dtype), {name: x.to(dtype) if x.is_floating_point() else x for name, x in state.items()}
        return self.in_pieces(q, k, v, state, call, cuts=True)

    def in_pieces(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: State | None,
        call: AttentionCall,
        cuts: bool = False,
    ) -> tuple[Tensor, State]:
        """The result of :meth:`run`, computed piece by piece. ``cuts`` as in :meth:`causal_piece`."""
        (batch, _, q_len, _), kv_len = q.shape, k.shape[2]
        first = kv_len - q_len  # index of the first query
        causal = call.causal and q_len > 1  # a single query sees every key
        outs: list[Tensor] = []
        output: Tensor | None = None
        # The state takes up the keys that every query sees: those before the first query, or all.
        for piece in self.pieces(first if causal else kv_len, q):
            phi_k, values, _ = self.key_features(k, v, piece, call)
            state = self.absorbed(state, phi_k, values)
        for piece in self.pieces(q_len, q):
            phi_q = self.queries(at_least_fp32(q[:, :, piece]), call)
            if causal:
                tokens = slice(piece.start + first, piece.stop + first)
                out, state = self.causal_piece(phi_q, *self.key_features(k, v, tokens, call), state, cuts)
            else:
                assert state is not None
                out = self.read(phi_q, state)
            if torch.is_grad_enabled() or out.shape[2] >= q_len:
                outs.append(out.to(q.dtype))
                continue
            if output is None:
                output = q.new_empty(batch, q.shape[1], q_len, v.shape[3])
            output[:, :, piece] = out.to(q.dtype)  # copied now, while it is in the CPU cache
        assert state is not None
        if output is not None:
            return output, state
        return (outs[0] if len(outs) == 1 else torch.cat(outs, 2)), state

    def pieces(self, stop: int, like: Tensor) -> Iterator[slice]:
        """Slices of the tokens below ``stop`` whose features are computed together.

        Each slice has at least two chunks, except the last. In graphs, there is a single slice.

        like: tensor ``(B, H, …)`` on the device of the computation.
        """
        if in_graph():
            size = stop
        else:
            features_per_token = like.shape[0] * like.shape[1] * self.features_per_head
            features = accelerator.numbers_at_a_time(like, FEATURES_PER_PIECE * torch.get_num_threads())
            size = max(2 * CHUNK, features // features_per_token // CHUNK * CHUNK)
        first = 0
        while first < stop:
            yield slice(first, min(first + size, stop))
            first += size

    def key_features(
        self, k: Tensor, v: Tensor, tokens: slice, call: AttentionCall
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features and values of the keys at ``tokens``, and a mask ``(B, n)`` bool of the real keys.

        The mask is ``None`` if all keys are real. Values keep their dtype. Padding gets features that add nothing to
        sums.
        """
        phi_k = self.keys(at_least_fp32(k[:, :, tokens]), call)
        values = repeat_heads(v[:, :, tokens], phi_k.shape[1])
        if call.key_mask is None:
            return phi_k, values, None
        real = call.key_mask[:, tokens]
        if self.logarithms:
            return phi_k.masked_fill(~real[:, None, :, None], float("-inf")), values, real
        return masked(phi_k, real), values, real

    def absorbed(self, state: State | None, phi_k: Tensor, values: Tensor) -> State:
        """The state after adding keys with features ``phi_k (B, heads, n, F)`` and their values."""
        if not self.logarithms:
            return absorb(empty_state(phi_k, values) if state is None else state, phi_k, values)
        state = _of_logarithms(state, phi_k, values)
        scale = torch.maximum(phi_k.detach().amax(2), state["log"])
        earlier = _rescaled(state, scale)
        features = exp_of(added(phi_k, scale[:, :, None], -1))
        return {**absorb(earlier, features, values), "log": scale}

    def read(self, phi_q: Tensor, state: State) -> Tensor:
        """The output of queries that see the whole state."""
        if self.logarithms:
            # a row that was reset is zeros and has had no keys
            scale = torch.where(state["z"] == 0, NO_KEYS, state["log"])
            phi_q = relative_queries(phi_q, scale[:, :, None])
        return read(phi_q, state)

    def causal_piece(
        self,
        phi_q: Tensor,
        phi_k: Tensor,
        values: Tensor,
        real: Tensor | None,
        state: State | None,
        cuts: bool,
    ) -> tuple[Tensor, State]:
        """Causal attention of the next tokens, and the state after them.

        Args:
            phi_q, phi_k: ``(B, H, n, F)`` and ``(B, heads, n, F)``.
            real: ``(B, n)`` bool, True = real key; ``None`` if all are real.
            cuts: for logarithms. If True, the piece is processed in parts, and a part ends before a key that exceeds
                the anchor A by too much. Every query then sees the keys from which A is taken, and its unnormalised
                weights sum to at least 1. Finding these keys reads values of tensors. If False, A includes the whole
                piece.
        """
        if not self.logarithms:
            return linear_attention(phi_q, phi_k, values, initial_state=state)
        outs = []
        begin = 0
        length = phi_q.shape[2]
        while begin < length:
            state = _of_logarithms(state, phi_k, values)
            logs = phi_k[:, :, begin:]
            count = length - begin
            anchor = _anchor(logs, None if real is None else real[:, begin:], state)
            top = torch.maximum(logs.detach().amax(2), anchor)  # the largest logarithm of each feature
            if not cuts:
                anchor = top
            elif count > 1 and bool((top - anchor).max() > MAX_LOG_RISE):  # end before the first key above the limit
                over = (logs.detach() - anchor[:, :, None]).amax((0, 1, 3)) > MAX_LOG_RISE
                count = max(int(over.int().argmax()), 1)
                logs = logs[:, :, :count]
                top = torch.maximum(logs.detach().amax(2), anchor)
            part = slice(begin, begin + count)
            if count == 1 and cuts:  # this key may be far above all earlier ones
                state = self.absorbed(state, logs, values[:, :, part])
                outs.append(self.read(phi_q[:, :, part], state))
            else:
                earlier = _rescaled(state, anchor)
                out, sums = linear_attention(
                    phi_q[:, :, part], logs, values[:, :, part], initial_state=earlier, scale=anchor
                )
                state = {**_rescaled({**sums, "log": anchor}, top), "log": top}
                outs.append(out)
            begin += count
        assert state is not None
        return (outs[0] if len(outs) == 1 else torch.cat(outs, 2)), state


def _of_logarithms(state: State | None, logs: Tensor, values: Tensor) -> State:
    """``state``, or an empty state instead of ``None``.

    The result's ``log`` is :data:`NO_KEYS` for features without keys so far, including all features of a row that was
    reset to zeros. Such features are recognised by ``z`` = 0.
    """
    if state is None:
        state = empty_state(logs, values)
        return {**state, "log": state["z"] + NO_KEYS}
    return {**state, "log": torch.where(state["z"] == 0, NO_KEYS, state["log"])}


@torch.no_grad()
def _anchor(logs: Tensor, real: Tensor | None, state: State) -> Tensor:
    """The anchor A ``(B, heads, F)``: the state's ``log``, or the first real key's ``logs`` if the state is empty.

    logs: ``(B, heads, n, F)``. real: ``(B, n)`` bool, or ``None`` if all keys are real.
    """
    if real is None:
        first = logs[:, :, 0]
    else:
        index = real.int().argmax(1)[:, None, None, None].expand(-1, logs.shape[1], 1, logs.shape[3])
        first = logs.gather(2, index)[:, :, 0].clamp(min=NO_KEYS)
    return torch.where(state["log"] == NO_KEYS, first, state["log"])


def _rescaled(state: State, scale: Tensor) -> State:
    """The sums ``kv`` and ``z`` relative to ``scale (B, heads, F)`` instead of the state's ``log``."""
    factor = (state["log"] - scale).clamp(max=0).exp()
    return {"kv": state["kv"] * factor[..., None], "z": state["z"] * factor}


def log_products(left: Tensor, right: Tensor) -> Tensor:
    """log Σ_m exp(left_im + right_jm), ``(…, Nq, Nk)``, of ``left (…, Nq, F)`` and ``right (…, Nk, F)``.

    The maximum over m is subtracted before exp(), so that products fit in float64.
    """
    left_max = left.amax(-1, keepdim=True)
    right_max = right.amax(-1, keepdim=True)
    products = (left - left_max).exp() @ (right - right_max).exp().mT
    return products.clamp(min=torch.finfo(products.dtype).tiny).log() + left_max + right_max.mT
