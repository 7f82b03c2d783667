"""Linear engine: attention with weights φ(q)·φ(k). Time and memory are linear in N.

Without causality two matrix products suffice. Causal attention is quadratic inside chunks, with a running sum of
φ(k)ᵀv between them (Katharopoulos et al. 2020, eq. 9-12). Let ã = φ(q)·φ(k) over the visible pairs, d_i = Σ_j ã_ij and
o_i = Σ_j ã_ij v_j / d_i. For a gradient g_i of o_i,

    ∂ã_ij = ĝ_i·v_j + c_i      ĝ_i = g_i / d_i      c_i = -ĝ_i·o_i

So the backward pass is linear attention again: from first to last chunk for φ(q), from last to first for φ(k) and v.
It recomputes the sums over earlier and later chunks. Therefore no tensor of size N×chunk is saved.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import no_fused_kernels, without_autocast
from .call import State, precise_dtype
from .dense import divided, inverse_of, repeat_heads

CHUNK = 64
"""Tokens per chunk of causal attention. Cost is quadratic inside a chunk."""
MAX_LOOPED_CHUNKS = 16
"""Maximum chunks that a loop sums. For more, a cumulative sum along the middle axis is faster."""


def linear_attention(
    phi_q: Tensor,
    phi_k: Tensor,
    v: Tensor,
    *,
    normalise: bool = True,
    initial_state: State | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Causal linear attention: Σ_j (φ(q_i)·φ(k_j)) v_j over the keys up to i, divided by Σ_j φ(q_i)·φ(k_j).

    Accumulates in fp32 at least, whatever the inputs and autocast say. Queries without a visible key give zeros.

    Args:
        phi_q: ``(B, H, Nq, F)``; if Nq < Nk, of the last Nq positions.
        phi_k: ``(B, H_kv, Nk, F)``, H_kv dividing H; zeros at padding, see :func:`masked`.
        v: ``(B, H_kv, Nk, D)``.
        normalise: divide by the sum of the weights, which must not be negative.
        initial_state: the sums over earlier keys, from an earlier call: ``kv (B, H_kv, F, D)`` of φ(k)ᵀv and
            ``z (B, H_kv, F)`` of φ(k).
        scale: ``(B, H_kv, F)``, logarithms of factors that keep features of very different sizes in range. phi_q and
            phi_k are then logarithms of features too, and may be overwritten. The features of keys, also in the
            state, are divided by exp(scale). Those of queries are multiplied by exp(scale), and divided by the
            largest feature of their query. ``scale`` needs ``normalise``, no padding, and Nq = Nk.
    Returns:
        ``(B, H, Nq, D)`` in fp32 (fp64 for fp64 inputs), and the state after the last key.
    """
    dtype = precise_dtype(phi_q)
    phi_q, phi_k = phi_q.to(dtype), phi_k.to(dtype)
    state = initial_state
    if state is None:
        state = empty_state(phi_k, v)
    prefix = phi_k.shape[2] - phi_q.shape[2]
    if prefix:  # keys before the first query: it sees all of them
        state = absorb(state, phi_k[:, :, :prefix], v[:, :, :prefix])
        phi_k, v = phi_k[:, :, prefix:], v[:, :, prefix:]
    if scale is not None:
        phi_q, phi_k = relative_queries(phi_q, scale[:, :, None]), exp_of(added(phi_k, scale[:, :, None], -1))
    length = phi_q.shape[2]
    chunk = min(CHUNK, length)
    phi_q, phi_k, v = (filled(x, chunk) for x in (phi_q, phi_k, v.to(dtype)))
    with without_autocast(v):
        run = _Chunked.apply if no_fused_kernels() is None else _chunks
        out, kv, z = run(phi_q, phi_k, v, state["kv"], state["z"], chunk, normalise)
    if length % chunk:
        out = out[:, :, :length]
    return out, {"kv": kv, "z": z}


def empty_state(phi_k: Tensor, v: Tensor) -> State:
    """The state before the first key, zeros, for features ``(B, H_kv, n, F)`` and values ``(B, H_kv, n, D)``."""
    batch, heads, _, features = phi_k.shape
    kv = torch.zeros(batch, heads, features, v.shape[-1], dtype=phi_k.dtype, device=phi_k.device)
    return {"kv": kv, "z": kv.new_zeros(batch, heads, features)}


def absorb(state: State, phi_k: Tensor, v: Tensor) -> State:
    """The state after further keys ``(B, H_kv, n, F)`` and values."""
    with without_autocast(v):
        return {"kv": state["kv"] + phi_k.mT @ v.to(phi_k.dtype), "z": state["z"] + phi_k.sum(2)}


def read(phi_q: Tensor, state: State, normalise: bool = True) -> Tensor:
    """The output ``(B, H, n, D)`` of queries ``(B, H, n, F)`` that see every key in the state."""
    kv, z = state["kv"], state["z"]
    grouped = phi_q.unflatten(1, (kv.shape[1], -1)).flatten(2, 3)
    with without_autocast(phi_q):
        out = grouped @ kv
        if normalise:
            out = divided(out, rowwise(grouped, z))
    return out.unflatten(2, (-1, phi_q.shape[2])).flatten(1, 2)


def masked(phi_k: Tensor, key_mask: Tensor) -> Tensor:
    """Features ``(B, H_kv, n, F)`` with zeros at padding."""
    return phi_k.masked_fill(~key_mask[:, None, :, None], 0.0)


def relative_queries(logs: Tensor, scale: Tensor) -> Tensor:
    """Query features from their logarithms, up to a factor per query.

    Args:
        logs: ``(B, H, n, F)``, may be overwritten.
        scale: ``(B, heads, n or 1, F)``, logarithms of the numbers by which key features were divided.
    """
    logs = added(logs, repeat_heads(scale, logs.shape[1]))
    return exp_of(added(logs, logs.detach().amax(-1, keepdim=True), -1))


def added(fresh: Tensor, term: Tensor, sign: int = 1) -> Tensor:
    """``fresh ± term``, in place if gradients are off. Nothing else may use ``fresh``."""
    if torch.is_grad_enabled():
        return torch.add(fresh, term, alpha=sign)
    return fresh.add_(term, alpha=sign)


def exp_of(fresh: Tensor) -> Tensor:
    """``exp(fresh)``, in place if gradients are off. Nothing else may use ``fresh``."""
    if torch.is_grad_enabled():
        return fresh.exp()
    return fresh.exp_()


class _Chunked(torch.autograd.Function):
    """The function :func:`_chunks` with its backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, z: Tensor, chunk: int, normalise: bool
    ) -> tuple[Tensor, ...]:
        out, kv_after, z_after = _chunks(q, k, v, kv, z, chunk, normalise)
        ctx.save_for_backward(q, k, v, kv, z, out)
        ctx.chunk, ctx.normalise = chunk, normalise
        return out, kv_after, z_after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k, v and the sums kv and z, by the equations in the module's docstring."""
        q, k, v, kv, z, out = ctx.saved_tensors
        grad, grad_kv, grad_z = grads
        group, chunk = q.shape[1] // k.shape[1], ctx.chunk
        with without_autocast(q):
            rows, keys, values = in_rows(q, group, chunk), in_rows(k, 1, chunk), in_rows(v, 1, chunk)
            before, _ = _running(keys.mT @ values, kv)
            z_before, _ = _running(keys.sum(-2), z)
            scores = _lower(rows @ keys.mT, group)
            # With normalise, grad becomes ĝ, and shift is c, as the module's docstring defines them.
            grad, shift = in_rows(grad, group, chunk), None
            if ctx.normalise:
                grad = grad * inverse_of(scores.sum(-1, keepdim=True) + rowwise(rows, z_before))
                shift = -(grad * in_rows(out, group, chunk)).sum(-1, keepdim=True)
            d_scores = grad @ values.mT
            if shift is not None:
                d_scores = d_scores + shift
            d_scores = _lower(d_scores, group)
            later, d_kv = _running(rows.mT @ grad, grad_kv, backwards=True)
            d_q = d_scores @ keys + grad @ before.mT
            d_k = d_scores.mT @ rows + values @ later.mT
            d_z = grad_z
            if shift is None:
                d_k = d_k + grad_z[:, :, None, None, :]
            else:
                z_later, d_z = _running((rows.mT @ shift).squeeze(-1), grad_z, backwards=True)
                d_q = d_q + shift * z_before[..., None, :]
                d_k = d_k + z_later[..., None, :]
            d_v = scores.mT @ grad + keys @ later
        return from_rows(d_q, group), from_rows(d_k, 1), from_rows(d_v, 1), d_kv, d_z, None, None


def _chunks(
    q: Tensor, k: Tensor, v: Tensor, kv: Tensor, z: Tensor, chunk: int, normalise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The output ``(B, H, N, D)`` of whole chunks and the sums after them. All tensors have one dtype.

    Works on chunk-major tensors ``(B, H_kv, chunks, rows, ·)``. Query heads that share a key head are stacked along
    the rows.

    Args:
        q, k: features ``(B, H, N, F)`` and ``(B, H_kv, N, F)``.
        kv, z: sums ``(B, H_kv, F, D)`` and ``(B, H_kv, F)`` of φ(k)ᵀv and φ(k) over the earlier tokens.
        normalise: divide by the sum of the weights; queries whose sum is 0 give zeros.
    """
    group = q.shape[1] // k.shape[1]
    rows, keys, values = in_rows(q, group, chunk), in_rows(k, 1, chunk), in_rows(v, 1, chunk)
    before, kv_after = _running(keys.mT @ values, kv)
    z_before, z_after = _running(keys.sum(-2), z)
    scores = _lower(rows @ keys.mT, group)
    out = (rows @ before).add_(scores @ values)
    if normalise:
        out.mul_(inverse_of(scores.sum(-1, keepdim=True).add_(rowwise(rows, z_before))))
    return from_rows(out, group), kv_after, z_after


def filled(x: Tensor, chunk: int) -> Tensor:
    """``x (B, H, n, ·)``, zero-padded to whole chunks. Contiguous, since matrix products would copy other tensors."""
    short = -x.shape[2] % chunk
    if short:
        return F.pad(x, (0, 0, 0, short))
    return x.contiguous()


def rowwise(rows: Tensor, z: Tensor) -> Tensor:
    """Product of each of ``rows (…, n, F)`` with ``z (…, F)``, ``(…, n, 1)``. On the CPU, ``@`` is several times
    slower for one column."""
    return (rows * z.unsqueeze(-2)).sum(-1, keepdim=True)


def in_rows(x: Tensor, group: int, chunk: int) -> Tensor:
    """``x (B, H_kv·group, N, F)`` as ``(B, H_kv, N / chunk, group·chunk, F)``."""
    x = x.unflatten(2, (-1, chunk))
    if group == 1:
        return x
    return x.unflatten(1, (-1, group)).transpose(2, 3).flatten(3, 4)


def from_rows(x: Tensor, group: int) -> Tensor:
    """The inverse of :func:`in_rows`."""
    if group > 1:
        x = x.unflatten(3, (group, -1)).transpose(2, 3).flatten(1, 2)
    return x.flatten(2, 3)


def _lower(scores: Tensor, group: int) -> Tensor:
    """Scores ``(B, H_kv, n, group·chunk, chunk)`` with zeros where the key is after the query."""
    if group == 1:
        return scores.tril_()
    return scores.unflatten(3, (group, -1)).tril_().flatten(3, 4)


def _running(sums: Tensor, first: Tensor, backwards: bool = False) -> tuple[Tensor, Tensor]:
    """The running total before each chunk, and the total of all chunks.

    sums: ``(B, H, n, …)``, of each chunk.
    first: ``(B, H, …)``, the initial total.
    backwards: whether to sum from the last chunk on. The running totals are then those after each chunk.
    """
    if sums.shape[2] > MAX_LOOPED_CHUNKS:
        if backwards:
            sums = sums.flip(2)
        totals = torch.cat((first.unsqueeze(2), sums), 2).cumsum(2)
        before = totals[:, :, :-1]
        if backwards:
            before = before.flip(2)
        return before, totals[:, :, -1]
    chunks = [*sums.unbind(2)]
    if backwards:
        chunks.reverse()
    steps = [first]
    for chunk in chunks:
        steps.append(steps[-1] + chunk)
    last = steps.pop()
    if backwards:
        steps.reverse()
    return torch.stack(steps, 2), last
