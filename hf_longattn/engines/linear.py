"""Linear engine: attention whose weights are products of features, φ(q)·φ(k), in time and memory linear in N.

Without causality two matrix products suffice; with it, chunks (:mod:`.linear_chunks`). On CUDA the kernels of the package
flash-linear-attention run where they are installed and can do what is asked (:mod:`.linear_fla`); the chunked path computes the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .linear_chunks import chunked_linear_attention, inverse_of, rowwise
from .linear_fla import fla_linear_attention, fla_runs

CHUNK = 64
"""Tokens per chunk of the causal form: what lies inside is quadratic."""

State = dict[str, Tensor]
"""``kv (B, H_kv, F, D)``, the sum of φ(k)ᵀv, and ``z (B, H_kv, F)``, the sum of φ(k); batch first."""


def linear_attention(
    phi_q: Tensor,
    phi_k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    key_mask: Tensor | None = None,
    normalise: bool = True,
    initial_state: State | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, State]:
    """Σ_j (φ(q_i)·φ(k_j)) v_j over the visible keys, divided by Σ_j φ(q_i)·φ(k_j).

    Accumulates in fp32 at least, whatever the inputs and autocast say. Rows that see no key are zeros.

    Args:
        phi_q: ``(B, H, Nq, F)``; with Nq < Nk the last Nq positions.
        phi_k: ``(B, H_kv, Nk, F)``, H_kv dividing H.
        v: ``(B, H_kv, Nk, D)``.
        causal: position i sees no key after i.
        key_mask: ``(B, Nk)`` bool, True = real.
        normalise: divide by the sum of the weights, which must not be negative.
        initial_state: the sums over keys that came before these, from an earlier call.
        chunk: tokens per chunk of the causal form.
    Returns:
        ``(B, H, Nq, D)`` in fp32 (fp64 for fp64 inputs), and the state after the last key.
    """
    dtype = torch.promote_types(phi_q.dtype, torch.float32)
    phi_q, phi_k, v = phi_q.to(dtype), phi_k.to(dtype), v.to(dtype)
    if key_mask is not None:
        phi_k = masked(phi_k, key_mask)
    state = empty_state(phi_k, v) if initial_state is None else initial_state
    prefix = phi_k.shape[2] - phi_q.shape[2]
    if not causal:
        state = absorb(state, phi_k, v)
        return read(phi_q, state, normalise), state
    if prefix:
        state = absorb(state, phi_k[:, :, :prefix], v[:, :, :prefix])
        phi_k, v = phi_k[:, :, prefix:], v[:, :, prefix:]
    run = fla_linear_attention if fla_runs(phi_q, phi_k, v) else chunked_linear_attention
    out, kv, z = run(phi_q, phi_k, v, state["kv"], state["z"], chunk, normalise)
    return out, {"kv": kv, "z": z}


def empty_state(phi_k: Tensor, v: Tensor) -> State:
    """The sums over no key at all."""
    batch, heads, _, features = phi_k.shape
    return {"kv": phi_k.new_zeros(batch, heads, features, v.shape[-1]), "z": phi_k.new_zeros(batch, heads, features)}


def absorb(state: State, phi_k: Tensor, v: Tensor) -> State:
    """The state with further keys ``(B, H_kv, n, F)`` and values added."""
    with torch.autocast(v.device.type, enabled=False):
        return {"kv": state["kv"] + phi_k.mT @ v, "z": state["z"] + phi_k.sum(2)}


def read(phi_q: Tensor, state: State, normalise: bool = True) -> Tensor:
    """What queries ``(B, H, n, F)`` that see everything in the state get: ``(B, H, n, D)``."""
    kv, z = state["kv"], state["z"]
    grouped = phi_q.unflatten(1, (kv.shape[1], -1)).flatten(2, 3)
    with torch.autocast(phi_q.device.type, enabled=False):
        out = grouped @ kv
        if normalise:
            out = _Divided.apply(out, rowwise(grouped, z))
    return out.unflatten(2, (-1, phi_q.shape[2])).flatten(1, 2)


def masked(phi_k: Tensor, key_mask: Tensor) -> Tensor:
    """Features ``(B, H_kv, n, F)`` that are zeros where ``key_mask (B, n)`` says padding."""
    return phi_k.masked_fill(~key_mask[:, None, :, None], 0.0)


class _Divided(torch.autograd.Function):
    """``total / weight`` with zeros where the weight is zero; keeps the quotient alone."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, weight: Tensor) -> Tensor:
        out = total * inverse_of(weight)
        ctx.save_for_backward(out, weight)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        out, weight = ctx.saved_tensors
        grad = grads[0] * inverse_of(weight)
        return grad, -(grad * out).sum(-1, keepdim=True)
