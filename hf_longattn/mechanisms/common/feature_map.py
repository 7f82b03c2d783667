"""Base of linear mechanisms: features of queries and keys, for the linear engine (Katharopoulos et al. 2020, equations 4 to 12).

    o_i = Σ_j κ(q_i, k_j) v_j / Σ_j κ(q_i, k_j)        κ(q, k) = φ_q(q) · φ_k(k)

A mechanism defines φ for the fast path and κ, written without φ, for the definition. On a CPU, features are computed for a few hundred
tokens at a time. They stay in the CPU cache and, unless gradients are needed, never exist for the whole text. Exponential features are
stored as logarithms (:mod:`.log_features`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ...engines import accelerator
from ...engines.batch import in_graph
from ...engines.call import AttentionCall, State
from ...engines.cuda import fla
from ...engines.dense import at_least_fp32, repeat_heads
from ...engines.dispatch import choose
from ...engines.linear import CHUNK, absorb, empty_state, fla_dtype, linear_attention, masked, read
from ...engines.sequences import attend_per_sequence
from .base import Mechanism
from .capabilities import Handling
from .layout import full_pairs
from .options import Options
from .scores import drop_keys, normalised, visible_to_all


class HeadwiseLinear(nn.Module):
    """A linear map per head, ``weight (H, D, F)``: from ``(B, H or H_kv, n, D)`` to ``(B, H, n, F)``, in the dtype of the input."""

    def __init__(self, num_heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, in_features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        return repeat_heads(x, self.weight.shape[0]) @ self.weight.to(x.dtype)

    def extra_repr(self) -> str:
        return "heads={}, in_features={}, out_features={}".format(*self.weight.shape)


FEATURES_PER_PIECE = 1 << 18
"""Feature elements computed at a time on a CPU, per thread. With fewer elements, threads wait for one another. More elements do not fit
into the CPU cache."""
CausalPiece: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None, State | None], tuple[Tensor, State]]
"""Signature of :meth:`LinearMechanism.causal_piece`."""


class LinearMechanism(Mechanism):
    """A mechanism whose weights are products of features."""

    engine = "linear"
    cost = "N·D²"
    capabilities = Mechanism.capabilities.but(stateful=True, takes_score_mod=False)
    handling = Handling(position_dependent=False)
    estimates_exp: ClassVar[bool] = False
    """Whether κ estimates exp(scale · q·k) itself, so that it can be added to softmax terms."""

    @classmethod
    def sums_beside_softmax(cls, options: Options) -> bool:
        """Whether sums of features can be added to softmax terms, with these options."""
        return True

    @abstractmethod
    def queries(self, q: Tensor, call: AttentionCall) -> Tensor:
        """φ_q of ``q (B, H, n, D)``: ``(B, H, n, F)``. A factor per query cancels in the normalisation."""

    @abstractmethod
    def keys(self, k: Tensor, call: AttentionCall) -> Tensor:
        """φ_k of ``k (B, H_kv, n, D)``: ``(B, H_kv or H, n, F)``."""

    @abstractmethod
    def kernel(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The definition: κ ``(B, H, Nq, Nk)``, up to a factor per query.
        ``q (B, H, Nq, D)`` has the last Nq positions of ``k (B, H, Nk, D)``."""

    def scaled(self, x: Tensor, call: AttentionCall) -> Tensor:
        """Queries or keys times (scale · √D)^½, so that their products are scaled by ``scale`` instead of D^-½."""
        scale = call.scale_for(self.head_dim)
        return x if scale == self.head_dim**-0.5 else x * (scale * self.head_dim**0.5) ** 0.5

    def features_per_head(self) -> int:
        """F, the number of features per head. Sizes the state and the pieces."""
        return self.head_dim

    def pairs(self, length: int, causal: bool = False) -> int:
        """Updating and reading a state of F·D numbers counts as F pairs per token. The causal form adds the pairs within each chunk."""
        chunk = min(length, CHUNK) if causal else 0
        return min(full_pairs(length, causal), length * self.features_per_head() + length * (chunk + 1) // 2)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        weights = self.kernel(q, repeat_heads(k, q.shape[1]), call)
        return self.normalised_kernel(weights, visible_to_all(q, k, call).expand_as(weights))

    def normalised_kernel(self, kernel: Tensor, visible: Tensor) -> Tensor:
        """The weights ``(B, H, Nq, Nk)`` for the values of :meth:`kernel` and a mask of the visible keys."""
        return normalised(kernel.masked_fill(~visible, 0.0))

    def labels_documents(self, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
        """Whether flash-linear-attention's kernel may take all packed documents in one call."""
        return call.causal and fla.installed()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            return self._run(q, k, v, None, call)[0] if call.documents is None else self._of_documents(q, k, v, call)

    def _of_documents(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output for packed documents: one call of flash-linear-attention's kernel, or a call for each document."""
        assert call.batch is not None
        dropped = drop_keys(v, call.dropout) if call.dropout else v
        if call.key_mask is not None:
            dropped = dropped.masked_fill(~call.key_mask[:, None, :, None], 0.0)
        phi_q = self.queries(at_least_fp32(q), call)
        phi_k, values = KeyPieces(self, k, dropped, call).take(slice(0, k.shape[2]))
        if (kernel := fla_dtype(phi_q, phi_k, values)) is None:
            return attend_per_sequence(self.forward, q, k, v, call, choose("documents", q, k, call))
        return fla.linear_attention(phi_q, phi_k, values, None, kernel, True, call.batch.cu_seqlens)[0].to(q.dtype)

    def advance(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall) -> tuple[Tensor, State]:
        """The state holds the sums ``kv (B, heads, F, D)`` and ``z (B, heads, F)``."""
        with torch.autocast(q.device.type, enabled=False):
            return self._run(q, k, v, state, call if call.causal else call.replace(causal=True))

    def _run(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall) -> tuple[Tensor, State]:
        v = drop_keys(v, call.dropout) if call.dropout else v
        return self.attended(q, KeyPieces(self, k, v, call), state)

    def attended(self, q: Tensor, source: KeyPieces, state: State | None) -> tuple[Tensor, State]:
        """The output of ``q`` over the keys, and the state after them."""
        return self.in_pieces(q, source, state, self.causal_piece)

    def in_pieces(self, q: Tensor, source: KeyPieces, state: State | None, causal_piece: CausalPiece) -> tuple[Tensor, State]:
        """The result of :meth:`attended`, computed piece by piece."""
        (batch, _, q_len, _), kv_len = q.shape, source.k.shape[2]
        first, causal = kv_len - q_len, source.call.causal and q_len > 1  # a single query sees every key
        outs: list[Tensor] = []
        output: Tensor | None = None
        for piece in self._pieces(0, first if causal else kv_len, q):
            phi_k, values = source.take(piece)
            state = self.absorbed(state, phi_k, values)
        for piece in self._pieces(0, q_len, q):
            tokens = slice(piece.start + first, piece.stop + first)
            phi_q = self.queries(at_least_fp32(q[:, :, piece]), source.call)
            if not causal:
                assert state is not None
                out = self.read(phi_q, state)
            else:
                out, state = causal_piece(phi_q, *source.take(tokens), source.real(tokens), state)
            outs.append(out.to(q.dtype))
            if not torch.is_grad_enabled() and out.shape[2] < q_len:  # copied into the output while in the CPU cache
                output = q.new_empty(batch, q.shape[1], q_len, source.v.shape[3]) if output is None else output
                output[:, :, piece] = outs.pop()
        assert state is not None
        if output is not None:
            return output, state
        return (outs[0] if len(outs) == 1 else torch.cat(outs, 2)), state

    def causal_piece(self, phi_q: Tensor, phi_k: Tensor, values: Tensor, real: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        """Causal attention of the next tokens, and the state after them. Features are ``(B, H, n, F)`` and ``(B, heads, n, F)``.

        real: ``(B, n)`` bool, True = real key; ``None`` if all are real.
        """
        return linear_attention(phi_q, phi_k, values, initial_state=state)

    def absorbed(self, state: State | None, phi_k: Tensor, values: Tensor) -> State:
        """The state after adding keys with features ``phi_k (B, heads, n, F)``."""
        return absorb(empty_state(phi_k, values) if state is None else state, phi_k, values)

    def read(self, phi_q: Tensor, state: State) -> Tensor:
        """The output of queries that see the whole state."""
        return read(phi_q, state)

    def without_padding(self, phi_k: Tensor, real: Tensor) -> Tensor:
        """Key features ``(B, heads, n, F)`` changed so that padding adds nothing to sums; ``real (B, n)`` is True at real keys."""
        return masked(phi_k, real)

    def _pieces(self, start: int, stop: int, like: Tensor) -> Iterator[slice]:
        """Slices of tokens whose features are computed together: at least two chunks, except at the end. In graphs, a single slice."""
        if in_graph():
            size = stop - start
        else:
            features = like.shape[0] * like.shape[1] * self.features_per_head()
            most = accelerator.numbers_at_a_time(like, FEATURES_PER_PIECE * torch.get_num_threads())
            size = max(2 * CHUNK, most // features // CHUNK * CHUNK)
        at = start
        while at < stop:
            yield slice(at, min(at + size, stop))
            at += size


class KeyPieces(NamedTuple):
    """The keys and values of one call, whose features are computed piece by piece."""

    mechanism: LinearMechanism
    k: Tensor
    v: Tensor
    call: AttentionCall

    def real(self, tokens: slice) -> Tensor | None:
        """Which of these tokens are real, ``(B, n)`` bool; ``None`` if all are."""
        return None if self.call.key_mask is None else self.call.key_mask[:, tokens]

    def take(self, tokens: slice) -> tuple[Tensor, Tensor]:
        """Features and values of these keys. Values keep their dtype, and features of padding add nothing to sums."""
        phi_k = self.mechanism.keys(at_least_fp32(self.k[:, :, tokens]), self.call)
        values = repeat_heads(self.v[:, :, tokens], phi_k.shape[1])
        real = self.real(tokens)
        return (phi_k if real is None else self.mechanism.without_padding(phi_k, real)), values


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1, computed as exp(x) below zero, where the sum would lose digits."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())
