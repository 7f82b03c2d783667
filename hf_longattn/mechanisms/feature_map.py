"""What linear mechanisms share: features of queries and keys, run by the linear engine (Katharopoulos et al. 2020, equations 4 to 12).

    o_i = Σ_j κ(q_i, k_j) v_j / Σ_j κ(q_i, k_j)        κ(q, k) = φ_q(q) · φ_k(k)

A mechanism gives φ for the fast path and κ, written without φ, for the definition. Features are made for a few hundred tokens at a time,
so that they stay in the cache and, where no gradient is asked for, never exist for the whole text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.dense import repeat_heads
from ..engines.linear import CHUNK, absorb, empty_state, linear_attention, masked, read
from ..engines.pattern import ScoreMod
from .base import Mechanism, State
from .options import Options
from .token_positions import positions_of

PIECE = 1 << 18
"""Features of one tensor that are made at a time, for each thread: fewer, and threads wait for one another; more, and the cache is left."""
NOTHING = -1e30
"""Logarithm of the scale of an empty state: finite, so that differences are numbers."""
LEAST = 1e-20
"""Added to features that are exponentials: a row that sees only keys far below the largest still has weights to divide by."""


class At(NamedTuple):
    """What features may depend on besides the vectors: the factor on q·k, the seed of the call, and, for mechanisms that count them, the
    tokens' positions ``(B, n)`` and the distance that these are relative to, one for all texts or ``(B,)``."""

    scale: float
    seed: int = 0
    positions: Tensor | None = None
    horizon: Tensor | int = 1

    def where(self, tokens: slice) -> At:
        """For some of the tokens."""
        return self if self.positions is None else self._replace(positions=self.positions[:, tokens])


class LinearMechanism(Mechanism):
    """A mechanism whose weights are products of features."""

    engine = "linear"
    cost = "N·D²"
    exact_when = "never: the weights are not a softmax"
    stateful = True
    takes_score_mod = False
    counts_positions: ClassVar[bool] = False
    """Whether the features depend on the tokens' positions, counted from the first real token."""
    estimates_exp: ClassVar[bool] = False
    """Whether κ stands for exp(scale · q·k) on its very scale, so that it can be added to terms of softmax."""
    key_logarithms: bool = False
    """Whether :meth:`keys` returns logarithms of features; they are exponentiated here, relative to the largest so far."""

    @classmethod
    def covering(cls, length: int, causal: bool) -> None:
        return None

    @classmethod
    def sums_beside_softmax(cls, options: Options) -> bool:
        """Whether, with these options, sums of the features can be added to terms of softmax."""
        return not (cls.counts_positions or cls.key_logarithms)

    @abstractmethod
    def queries(self, q: Tensor, at: At) -> Tensor:
        """φ_q of ``q (B, H, n, D)``: ``(B, H, n, F)``. A factor of its own for each row changes nothing."""

    @abstractmethod
    def keys(self, k: Tensor, at: At) -> Tensor:
        """φ_k of ``k (B, H_kv, n, D)``: ``(B, H_kv or H, n, F)``, or its logarithm (:attr:`key_logarithms`)."""

    @abstractmethod
    def kernel(self, q: Tensor, k: Tensor, of_q: At, of_k: At) -> Tensor:
        """The definition: κ ``(B, H, Nq, Nk)`` of ``q (B, H, Nq, D)`` and ``k (B, H, Nk, D)``, up to factors of the rows."""

    def placed(self, at: At, mask: Tensor | None, positions: Tensor, *, causal: bool, counted: bool) -> At:
        """``at`` with the tokens' positions ``(B, n)``; for mechanisms that count them.

        Args:
            mask: ``(B, n)`` bool, True = real.
            counted: whether there were tokens before these.
        Raises:
            LengthError: for positions that the features do not know.
        """
        return at._replace(positions=positions)

    def features_per_head(self) -> int:
        """F, which sizes the state and the pieces."""
        return self.head_dim

    def pairs(self, length: int, causal: bool = False) -> int:
        """Writing and reading a state of F·D numbers costs a token as much as F pairs; causal chunks add their own triangles."""
        chunk = min(length, CHUNK) if causal else 0
        return min(super().pairs(length, causal), length * self.features_per_head() + length * (chunk + 1) // 2)

    def dense_weights(
        self,
        q: Tensor,
        k: Tensor,
        *,
        causal: bool = False,
        padding_mask: Tensor | None = None,
        global_mask: Tensor | None = None,
        scaling: float | None = None,
        score_mod: ScoreMod | None = None,
        seed: int = 0,
    ) -> Tensor:
        (batch, heads, q_len, _), kv_len = q.shape, k.shape[2]
        at = At(self.scale(scaling), seed)
        if self.counts_positions:
            positions, _ = positions_of(padding_mask, batch, kv_len, q.device)
            at = self.placed(at, padding_mask, positions, causal=causal, counted=False)
        weights = self.kernel(q, repeat_heads(k, heads), at.where(slice(kv_len - q_len, None)), at)
        if causal:
            weights = weights.tril(kv_len - q_len)
        if padding_mask is not None:
            weights = weights.masked_fill(~padding_mask[:, None, None, :], 0.0)
        total = weights.sum(-1, keepdim=True)
        return torch.where(total == 0, 0.0, weights / torch.where(total == 0, 1.0, total))

    def scale(self, scaling: float | None) -> float:
        """The factor on q·k."""
        return self.head_dim**-0.5 if scaling is None else scaling

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = False,
        padding_mask: Tensor | None = None,
        global_mask: Tensor | None = None,
        scaling: float | None = None,
        dropout_p: float = 0.0,
        score_mod: ScoreMod | None = None,
        seed: int = 0,
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            return self._run(q, k, v, None, causal, padding_mask, At(self.scale(scaling), seed), dropout_p)[0]

    def advance(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: State | None,
        *,
        padding_mask: Tensor | None = None,
        scaling: float | None = None,
        dropout_p: float = 0.0,
    ) -> tuple[Tensor, State]:
        """The next tokens of a causal text: ``q (B, H, n, D)``, ``k, v (B, H_kv, n, D)``, ``padding_mask (B, n)`` of these alone.

        Returns:
            The output ``(B, H, n, D)``, and the state after them, batch first: ``kv``, ``z``, and where the features need it ``seen (B,)``,
            how many positions were counted, and ``log (B, heads)``, the scale that the sums are kept in.
        """
        with torch.autocast(q.device.type, enabled=False):
            return self._run(q, k, v, state, True, padding_mask, At(self.scale(scaling)), dropout_p)

    def _run(
        self, q: Tensor, k: Tensor, v: Tensor, state: State | None, causal: bool, mask: Tensor | None, at: At, dropout_p: float
    ) -> tuple[Tensor, State]:
        (batch, _, q_len, _), kv_len = q.shape, k.shape[2]
        if dropout_p:  # there is no matrix of weights: whole keys are dropped
            v = v * F.dropout(v.new_ones(*v.shape[:3], 1), dropout_p)
        seen = None
        if self.counts_positions:
            positions, seen = positions_of(mask, batch, kv_len, q.device, None if state is None else state["seen"])
            at = self.placed(at, mask, positions, causal=causal, counted=state is not None)
        source = _Keys(self, k, v, mask, at)
        first = kv_len - q_len
        outs: list[Tensor] = []
        whole: Tensor | None = None
        for piece in self._pieces(0, first if causal else kv_len, q):
            phi_k, values, state = source.take(piece, state)
            state = {**state, **absorb(state, phi_k, values)}
        for piece in self._pieces(0, q_len, q):
            tokens = slice(piece.start + first, piece.stop + first)
            phi_q = self.queries(wide(q[:, :, piece]), at.where(tokens))
            if causal:
                phi_k, values, state = source.take(tokens, state)
                out, sums = linear_attention(phi_q, phi_k, values, causal=True, initial_state=state)
                state = {**state, **sums}
            else:
                assert state is not None
                out = read(phi_q, state)
            outs.append(out.to(q.dtype))
            if not torch.is_grad_enabled() and out.shape[2] < q_len:  # straight to its place, while it is in the cache
                whole = q.new_empty(batch, q.shape[1], q_len, v.shape[3]) if whole is None else whole
                whole[:, :, piece] = outs.pop()
        assert state is not None
        if seen is not None:
            state = {**state, "seen": seen}
        if whole is not None:
            return whole, state
        return (outs[0] if len(outs) == 1 else torch.cat(outs, 2)), state

    def _pieces(self, start: int, stop: int, like: Tensor) -> Iterator[slice]:
        """Runs of tokens, each with :data:`PIECE` features or two chunks; a single one in compiled graphs."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            size = stop - start
        else:
            features = like.shape[0] * like.shape[1] * self.features_per_head()
            size = max(2 * CHUNK, PIECE * torch.get_num_threads() // features // CHUNK * CHUNK)
        at = start
        while at < stop:
            yield slice(at, min(at + size, stop))
            at += size


class _Keys(NamedTuple):
    """The keys and values of one call, of which features are made piece by piece."""

    mechanism: LinearMechanism
    k: Tensor
    v: Tensor
    mask: Tensor | None
    at: At

    def take(self, tokens: slice, state: State | None) -> tuple[Tensor, Tensor, State]:
        """Features and values of these tokens, and the state of the earlier ones in the same scale."""
        mask = None if self.mask is None else self.mask[:, tokens]
        phi_k = self.mechanism.keys(wide(self.k[:, :, tokens]), self.at.where(tokens))
        values = repeat_heads(wide(self.v[:, :, tokens]), phi_k.shape[1])
        if state is None:
            state = empty_state(phi_k, values)
            if self.mechanism.key_logarithms:
                state["log"] = phi_k.new_full(phi_k.shape[:2], NOTHING)
        if self.mechanism.key_logarithms:
            phi_k, state = exponentiated(phi_k, mask, state)
        return phi_k if mask is None else masked(phi_k, mask), values, state


def exponentiated(logs: Tensor, mask: Tensor | None, state: State) -> tuple[Tensor, State]:
    """exp of ``logs (B, H, n, F)`` relative to the largest so far, and the state in the same scale. The scale cancels in the quotient."""
    with torch.no_grad():
        most = logs.amax(-1)
        if mask is not None:
            most = most.masked_fill(~mask[:, None], NOTHING)
        top = torch.maximum(most.amax(-1), state["log"])
        factor = (state["log"] - top).exp()
    phi_k = exp_of(logs - top[..., None, None]) + LEAST
    return phi_k, {**state, "kv": state["kv"] * factor[..., None, None], "z": state["z"] * factor[..., None], "log": top}


def exp_of(fresh: Tensor) -> Tensor:
    """exp, in place where no gradient is asked for; ``fresh`` is nobody else's."""
    return fresh.exp() if torch.is_grad_enabled() else fresh.exp_()


def wide(x: Tensor) -> Tensor:
    """At least fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
