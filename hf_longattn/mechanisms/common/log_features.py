"""Exponential features, stored as logarithms so that no score overflows.

Feature m of query i is exp(b_im), of key j exp(a_jm). A piece of keys is exponentiated relative to an anchor A_m: the largest a_jm of the
earlier keys or, in the first piece, a_jm of the first real key. Up to a factor per query, the weights Σ_m exp(b_im + a_jm) are
Σ_m exp(b_im + A_m - c_i) exp(a_jm - A_m), where c_i is the maximum of b_im + A_m over m. No later key changes a query's output, except by
rounding on accelerators and in graphs, where A may include the piece itself.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...engines import accelerator
from ...engines.batch import in_graph
from ...engines.call import AttentionCall, State
from ...engines.dense import at_least_fp32
from ...engines.linear import absorb, added, empty_state, exp_of, linear_attention, read, relative_queries
from ...engines.topk import exact_dtype
from .feature_map import KeyPieces, LinearMechanism
from .options import Options
from .scores import softmax_over

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
