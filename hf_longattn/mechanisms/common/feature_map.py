"""Base of linear mechanisms: features of queries and keys, for the linear engine (Katharopoulos et al. 2020, equations 4 to 12).

    o_i = Σ_j κ(q_i, k_j) v_j / Σ_j κ(q_i, k_j)        κ(q, k) = φ_q(q) · φ_k(k)

A mechanism defines φ for the fast path and κ, written without φ, for the definition. On a CPU, features are computed for a few hundred
tokens at a time. They stay in the CPU cache and, unless gradients are needed, never exist for the whole text.

Exponential features are stored as logarithms, so that no score overflows (:class:`LogLinearMechanism`). Feature m of query i is
exp(b_im), of key j exp(a_jm). A piece of keys is exponentiated relative to an anchor A_m: the largest a_jm of the earlier keys or, in the
first piece, a_jm of the first real key. Up to a factor per query, the weights Σ_m exp(b_im + a_jm) are
Σ_m exp(b_im + A_m - c_i) exp(a_jm - A_m), where c_i is the maximum of b_im + A_m over m. No later key changes a query's output, except by
rounding on accelerators and in graphs, where A may include the piece itself.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ...engines import accelerator
from ...engines.batch import in_graph
from ...engines.call import AttentionCall, State
from ...engines.cuda import fla
from ...engines.dense import at_least_fp32, repeat_heads
from ...engines.dispatch import choose
from ...engines.linear_attention import (
    CHUNK,
    absorb,
    added,
    empty_state,
    exp_of,
    fla_dtype,
    linear_attention,
    masked,
    read,
    relative_queries,
)
from ...engines.sequences import attend_per_sequence
from ...engines.topk import exact_dtype
from .base import Mechanism, drop_keys, normalised, softmax_over, visible_to_all
from .capabilities import Handling
from .layout import full_pairs
from .options import Options


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


NO_KEYS = -1e30
"""Log scale of a feature that has had no keys so far. Finite, so that differences are not NaN."""
MAX_LOG_RISE = 60.0
"""Maximum of a key's log feature minus the anchor A. exp(60) and its products fit in fp32."""


class LogLinearMechanism(LinearMechanism):
    """A linear mechanism whose :meth:`queries`, :meth:`keys` and :meth:`kernel` return logarithms if :attr:`logarithms` is True."""

    logarithms: bool = True

    @classmethod
    def sums_beside_softmax(cls, options: Options) -> bool:
        return not cls.logarithms

    def normalised_kernel(self, kernel: Tensor, visible: Tensor) -> Tensor:
        return softmax_over(kernel, visible) if self.logarithms else super().normalised_kernel(kernel, visible)

    def without_padding(self, phi_k: Tensor, real: Tensor) -> Tensor:
        return phi_k.masked_fill(~real[:, None, :, None], float("-inf")) if self.logarithms else super().without_padding(phi_k, real)

    def attended(self, q: Tensor, source: KeyPieces, state: State | None) -> tuple[Tensor, State]:
        """The state also holds ``log (B, heads, F)``, the largest logarithm of each feature. The sums are relative to it.

        A causal piece ends before a key that exceeds the anchor A by more than :data:`MAX_LOG_RISE`. A graph cannot cut pieces by their
        values. It computes in float64, where exp() covers differences of about 700, or in float32 (about 80) on devices without float64.
        """
        if not (self.logarithms and source.call.causal and q.shape[2] > 1):
            return super().attended(q, source, state)
        if in_graph() or (q.is_cuda and torch.cuda.is_current_stream_capturing()):
            exact = exact_dtype(q.device)
            wider = None if state is None else {name: x.to(exact) for name, x in state.items()}
            source = source._replace(k=source.k.to(exact), v=source.v.to(exact))
            out, after = self.in_pieces(q.to(exact), source, wider, self.causal_piece)
            return out.to(q.dtype), {name: at_least_fp32(x.to(q.dtype)) if x.is_floating_point() else x for name, x in after.items()}
        if not accelerator.accelerated(q):
            return self._watched(q, source, state, _Rises(look=True))
        rises = _Rises(look=False)
        out, after = self._watched(q, source, state, rises)
        if rises.exceeded():  # read once, at the end: reading after every piece would wait for the device each time
            return self._watched(q, source, state, _Rises(look=True))
        return out, after

    def _watched(self, q: Tensor, source: KeyPieces, state: State | None, rises: _Rises) -> tuple[Tensor, State]:
        return self.in_pieces(q, source, state, partial(self.causal_piece, rises=rises))

    def causal_piece(
        self, phi_q: Tensor, phi_k: Tensor, values: Tensor, real: Tensor | None, state: State | None, rises: _Rises | None = None
    ) -> tuple[Tensor, State]:
        """Features are logarithms; ``rises`` records how far keys exceed the anchor A.
        If ``rises.look``, every query sees the keys that A comes from, and its unnormalised weights sum to 1 or more."""
        if not self.logarithms:
            return super().causal_piece(phi_q, phi_k, values, real, state)
        outs, begin, length = [], 0, phi_q.shape[2]
        while begin < length:
            state = _of_logarithms(state, phi_k, values)
            rest, count = phi_k[:, :, begin:], length - begin
            anchor = _anchor(rest, None if real is None else real[:, begin:], state)
            top = _largest(rest, anchor)
            if rises is None:
                anchor = top
            elif not rises.look:
                anchor = torch.minimum(anchor + MAX_LOG_RISE, top)  # all weights of the first key are exp(-60) or more
            if rises is not None and count > 1 and rises.exceeds(top - anchor):
                over = (rest.detach() - anchor[:, :, None]).amax((0, 1, 3)) > MAX_LOG_RISE
                count = max(int(over.int().argmax()), 1)
                rest = rest[:, :, :count]
                top = _largest(rest, anchor)
            piece = slice(begin, begin + count)
            if count == 1 and rises is not None:  # this key may be far above all earlier ones
                state = self.absorbed(state, rest, values[:, :, piece])
                outs.append(self.read(phi_q[:, :, piece], state))
            else:
                out, sums = linear_attention(
                    phi_q[:, :, piece], rest, values[:, :, piece], initial_state=_rescaled(state, anchor), scale=anchor
                )  # fmt: skip
                state = {**_rescaled({**sums, "log": anchor}, top), "log": top}
                outs.append(out)
            begin += count
        assert state is not None
        return (outs[0] if len(outs) == 1 else torch.cat(outs, 2)), state

    def labels_documents(self, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
        return not self.logarithms and super().labels_documents(k, v, call)  # a logarithm's anchor is a document's own

    def absorbed(self, state: State | None, phi_k: Tensor, values: Tensor) -> State:
        if not self.logarithms:
            return super().absorbed(state, phi_k, values)
        state = _of_logarithms(state, phi_k, values)
        top = _largest(phi_k, state["log"])
        return {**absorb(_rescaled(state, top), exp_of(added(phi_k, top[:, :, None], -1)), values), "log": top}

    def read(self, phi_q: Tensor, state: State) -> Tensor:
        return read(relative_queries(phi_q, _scale_of(state)[:, :, None]) if self.logarithms else phi_q, state)


class _Rises:
    """Records whether keys exceed the anchor of their piece by more than :data:`MAX_LOG_RISE`.

    look: whether to check after every piece; otherwise once at the end.
    """

    def __init__(self, look: bool) -> None:
        self.look = look
        self.largest: list[Tensor] = []

    def exceeds(self, rise: Tensor) -> bool:
        """Whether ``rise``, log features minus anchor, is too large anywhere. Without ``look``, record it and return False."""
        if self.look:
            return bool(rise.max() > MAX_LOG_RISE)
        self.largest.append(rise.max())
        return False

    def exceeded(self) -> bool:
        """Whether any recorded rise is too large. :meth:`exceeds` records rises if ``look`` is False."""
        return bool(self.largest) and bool(torch.stack(self.largest).max() > MAX_LOG_RISE)


def _of_logarithms(state: State | None, logs: Tensor, values: Tensor) -> State:
    """``state``, or an empty state instead of ``None``. Its ``log`` is :data:`NO_KEYS` for features that have had no keys."""
    if state is None:
        state = empty_state(logs, values)
        return {**state, "log": state["z"] + NO_KEYS}
    return {**state, "log": _scale_of(state)}


@torch.no_grad()
def _scale_of(state: State) -> Tensor:
    """The log scale of a state's sums, ``(B, heads, F)``; :data:`NO_KEYS` where ``z`` is 0, as in a state of zeros."""
    return torch.where(state["z"] == 0, NO_KEYS, state["log"])


@torch.no_grad()
def _largest(logs: Tensor, scale: Tensor) -> Tensor:
    """Maximum ``(B, heads, F)`` over the n tokens of ``logs (B, heads, n, F)`` and over ``scale (B, heads, F)``."""
    return torch.maximum(logs.amax(2), scale)


@torch.no_grad()
def _anchor(logs: Tensor, real: Tensor | None, state: State) -> Tensor:
    """The state's scale, or the logarithms of the first real key if the state is empty."""
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
    """log Σ_m exp(left_im + right_jm). The maximum of each row is subtracted before exp(), so that products fit in float64."""
    rows, columns = left.amax(-1, keepdim=True), right.amax(-1, keepdim=True)
    products = (left - rows).exp() @ (right - columns).exp().mT
    return products.clamp(min=torch.finfo(products.dtype).tiny).log() + rows + columns.mT
