"""The gated delta rule in chunks (Yang et al. 2024, Gated Delta Networks, equation 10 and section 3.3; WY form of Yang et al. 2024b).

    S_t = α_t (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ        o_t = S_tᵀ q_t        α_t = exp(g_t)

Inside a chunk, with G the running sum of g and Γ_ij = exp(G_i - G_j) for j ≤ i, the updates condense into one triangular system

    (I + tril(diag(β) K Kᵀ ⊙ Γ, -1)) [U, W] = diag(β) [V, diag(exp G) K]

so that the values that really enter the state S before the chunk are U - W S. Everything is computed in fp32 at least.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import CALL, Facts, choose
from .linear import fla_gated_delta_rule

CHUNK = 64
"""Tokens per triangular system."""


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The causal gated delta rule.

    Args:
        q, k: ``(B, H, N, F)``, q scaled already.
        v: ``(B, H, N, D)``.
        g: ``(B, H, N)``, the logarithm of the decay, at most 0.
        beta: ``(B, H, N)``, how much of the old value is replaced; 0, with a g of 0, leaves the state as it was.
        state: ``(B, H, F, D)`` from the tokens before, zeros when None.
    Returns:
        ``(B, H, N, D)`` and the state after the last token, in fp32 (fp64 for fp64 inputs).
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    state = torch.zeros(*k.shape[:2], k.shape[3], v.shape[3], dtype=dtype, device=k.device) if state is None else state.to(dtype)
    given = q.dtype if q.dtype == v.dtype else None
    facts = Facts(q.device.type, q.shape[2], k.shape[2], CALL, dtype=given, features=max(q.shape[-1], v.shape[-1]))
    if choose("delta", facts) == "delta-fla":
        return fla_gated_delta_rule(q, k, v, g, beta, state)
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, g, beta = (x.to(dtype) for x in (q, k, v, g, beta))
        return _step(q, k, v, g, beta, state) if q.shape[2] == 1 else _chunked(q, k, v, g, beta, state)


def _step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: the recurrence itself."""
    state = state * g.exp()[..., None]
    state = state + k.mT @ (beta[..., None] * (v - k @ state))
    return q @ state, state


def _chunked(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    length, chunk = q.shape[2], min(CHUNK, q.shape[2])
    short = -length % chunk
    if short:
        q, k, v = (F.pad(x, (0, 0, 0, short)) for x in (q, k, v))
        g, beta = (F.pad(x, (0, short)) for x in (g, beta))
    q, k, v, g, beta = (x.unflatten(2, (-1, chunk)) for x in (q, k, v, g, beta))
    total = g.cumsum(-1)
    ahead = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).triu(1)
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(ahead, float("-inf")).exp()
    system = (beta[..., None] * (k @ k.mT) * decay).tril(-1)
    right = beta[..., None] * torch.cat((v, k * total.exp()[..., None]), -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    fresh, seen = solved.split((v.shape[-1], k.shape[-1]), -1)
    inside = (q @ k.mT) * decay
    q = q * total.exp()[..., None]
    k = k * (total[..., -1:] - total).exp()[..., None]
    last = total[..., -1].exp()[..., None, None]
    outs = []
    for one_q, one_k, one_fresh, one_seen, one_inside, one_last in zip(
        *(x.unbind(2) for x in (q, k, fresh, seen, inside, last)), strict=True
    ):
        entering = one_fresh - one_seen @ state
        outs.append(one_q @ state + one_inside @ entering)
        state = state * one_last + one_k.mT @ entering
    return torch.cat(outs, 2)[:, :, :length], state
